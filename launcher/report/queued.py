"""What a job asks of Slurm, and what is said when it was queued: its number, and how it is followed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher.render.asked import Asked
from launcher.report.console import columns, heading, indented, show
from launcher.runs.called import run_command
from launcher.runs.records import Submission
from launcher.spec import JobSpec, SlurmSpec
from launcher.units import format_bytes, format_duration

Rows = tuple[tuple[str, str], ...]


def show_queued(submission: Submission, spec: JobSpec, asked: Asked, run_dir: str, console: Console) -> None:
    """The last screen of a launch on a cluster; the job goes on without us."""
    run = Path(run_dir)
    rows: Rows = (
        ("job", str(submission.job_id)),
        *_asked_rows(spec, asked),
        ("run folder", run_dir),
        ("follow it", f"{run_command('status', run)}, {run_command('logs -f', run)}"),
        ("stop it", run_command("cancel", run)),
    )
    _show("Queued", rows, console)


def show_asked(spec: JobSpec, asked: Asked, console: Console) -> None:
    """What a job script asks for, and why."""
    _show("Asked of Slurm", _asked_rows(spec, asked), console)


def _show(title: str, rows: Rows, console: Console) -> None:
    table = columns("lw")
    for name, text in rows:
        table.add_row(Text(name, style="bold"), text)
    show(console, heading(title), indented(table))


def _asked_rows(spec: JobSpec, asked: Asked) -> Rows:
    slurm = spec.cluster.slurm
    assert slurm is not None, "only Slurm is asked for nodes"
    memory = asked.memory_bytes_per_node
    return (
        ("nodes", f"{spec.nodes} x {_ranks(spec)}" + ("" if slurm.partition is None else f" in {slurm.partition}")),
        ("RAM", f"{format_bytes(memory) if memory else 'all'} of each node: {asked.memory_words}"),
        ("time", format_duration(slurm.time_min * 60)),
        ("saves", f"{asked.lead_s} s before that: {asked.lead_words}"),
        ("goes on", _requeue_words(slurm)),
    )


def _ranks(spec: JobSpec) -> str:
    return f"{spec.gpus_per_node} {'CPU ranks' if spec.device.kind == 'cpu' else spec.device.name}"


def _requeue_words(slurm: SlurmSpec) -> str:
    if not slurm.requeue:
        return "not by itself (cluster.requeue=false)"
    starts = f"{slurm.max_attempts} starts in all"
    return f"after the time limit, a preemption or the loss of a node, from its last checkpoint: {starts}"
