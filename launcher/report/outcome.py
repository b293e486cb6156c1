"""The last screen of a run, and what is written at its end: report.json and loss.png."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher.planner.types import MemoryPlan
from launcher.report.console import columns, heading, indented, show
from launcher.report.curve import draw_curve
from launcher.report.describe import batch_words, job_words, model_words, plural, trained_words
from launcher.report.failure import show_failure
from launcher.report.less_memory import less_memory, show_less_memory
from launcher.report.record import RankMemory, Report, make_report
from launcher.report.sweep_table import STATUS_STYLE, loss_words
from launcher.runs.called import run_argument
from launcher.runs.diagnosis.read import keep_diagnosis
from launcher.runs.diagnosis.types import MEMORY
from launcher.runs.layout import RunFolder
from launcher.runs.logs import logs_folder
from launcher.runs.outcome import Outcome
from launcher.runs.records import Started, Status, read_record, write_record
from launcher.runs.tail import read_metrics
from launcher.spec import JobSpec, MethodKind
from launcher.units import format_bytes, format_duration

# With more ranks than this, only those that are furthest from their plan are shown.
MAX_RANKS = 8


def write_report(outcome: Outcome) -> Report:
    """Gather an attempt's report and leave it in the run folder, with the loss curve where there is one to draw."""
    folder = RunFolder(outcome.run_dir)
    plan = read_record(folder.memory_plan, MemoryPlan)
    assert plan is not None, f"{folder.memory_plan} is written before anything is started"
    started = read_record(folder.started(outcome.attempt), Started)
    metrics = read_metrics(folder.metrics)
    report = make_report(outcome, plan, started, metrics, run_id=folder.root.name)
    write_record(folder.report, report)
    if outcome.diagnosis is not None and outcome.diagnosis.kind in MEMORY:
        keep_diagnosis(folder, dataclasses.replace(outcome.diagnosis, overrides=less_memory(plan.spec)))
    draw_curve(metrics, folder.loss_curve, title=f"{folder.root.name}\n{plan.spec.model.name}, {job_words(plan.spec)}")
    return report


def show_outcome(outcome: Outcome, report: Report, spec: JobSpec, console: Console) -> None:
    """What ran, what came of it, where it is and what to do next; after a failure, its cause first."""
    folder = RunFolder(outcome.run_dir)
    status = f"Run {report.run_id} {_ending_words(report)}"
    show(console, Text.assemble("\n", (status, f"bold {STATUS_STYLE.get(report.status, 'default')}")))
    if report.status is Status.FAILED:
        _show_failure(outcome, spec, console)
    _show_job(report, spec, console)
    if report.memory:
        _show_memory(report, spec, console)
    _show_places(report, folder, console)
    _show_next(report, spec, folder, console)


def _ending_words(report: Report) -> str:
    attempt = "" if report.attempt <= 1 else f" (attempt {report.attempt})"
    if report.status is Status.FINISHED:
        took = f" in {format_duration(report.train_time_s)}" if report.train_time_s is not None else ""
        return f"finished {plural(report.step, 'step')}{took}{attempt}"
    of = "" if report.num_steps is None else f" of {report.num_steps:,}"
    words = {Status.STOPPED: "stopped after", Status.FAILED: "failed after"}.get(report.status)
    if words is None:
        return f"{report.status.value}{attempt}"
    return f"{words} {report.step:,}{of} steps{attempt}"


def _show_failure(outcome: Outcome, spec: JobSpec, console: Console) -> None:
    found = outcome.diagnosis
    if found is None:
        show(console, Text(outcome.first_cause or "Nobody said why.", style="red"))
        return
    show_failure(found, console, sentence=outcome.first_cause)
    if found.kind in MEMORY:
        show_less_memory(spec, console)


def _show_job(report: Report, spec: JobSpec, console: Console) -> None:
    table = columns("lw")
    table.add_row("model", _model_words(report, spec))
    table.add_row("job", job_words(spec))
    if report.wrapper is not None:
        table.add_row("wrapper", report.wrapper)
    table.add_row("batch", batch_words(spec))
    if report.num_train_samples is not None:
        rows = f"{report.num_train_samples:,} rows to train on, {report.num_eval_samples:,} held out"
        table.add_row("data", f"{rows}, {report.num_truncated_samples:,} cut to the sequence length")
    if report.eval_loss_before is not None or report.eval_loss_after is not None:
        table.add_row("held-out loss", _loss_change(report.eval_loss_before, report.eval_loss_after))
    if report.train_loss is not None:
        what = "mean over the training" if report.status is Status.FINISHED else "at the last step"
        table.add_row("training loss", f"{loss_words(report.train_loss)} {what}")
    if report.samples_per_s is not None and report.tokens_per_s is not None:
        table.add_row("speed", speed_words(report.samples_per_s, report.tokens_per_s))
    show(console, heading("What ran"), indented(table))


def _model_words(report: Report, spec: JobSpec) -> str:
    """As the ranks counted it where they said so, and as planned before that."""
    if spec.method.kind is MethodKind.FULL or report.num_parameters is None or report.num_trainable_parameters is None:
        return model_words(spec)
    base = report.num_parameters - report.num_trainable_parameters
    return f"{spec.model.name}, {trained_words(report.num_trainable_parameters, base)}"


def _loss_change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return f"{loss_words(before)} before training" if after is None else f"{loss_words(after)} after training"
    return f"{loss_words(before)} before training, {loss_words(after)} after ({100 * (after - before) / before:+.1f} %)"


def speed_words(samples_per_s: float, tokens_per_s: float) -> str:
    """Rates over all ranks, saying which tokens (as jobs.trainer counts them)."""
    return f"{samples_per_s:.2f} samples/s, {tokens_per_s:,.0f} tokens/s of prompts and answers, padding not counted"


# Memory


def _show_memory(report: Report, spec: JobSpec, console: Console) -> None:
    on_gpu = spec.device.kind == "cuda"
    detail = "peak of each rank" if on_gpu else "peak of each rank; allocated is over the first steps"
    show(console, heading("Memory", f"{detail}; planned by {report.planned_by}"))
    table = columns("llrrr", ("", "", "planned", "measured", "plan off by"))
    shown = furthest_off(report.memory, MAX_RANKS)
    for memory in shown:
        for number, (name, planned, measured) in enumerate(memory_rows(memory, on_gpu=on_gpu)):
            rank = f"rank {memory.rank}" if number == 0 else ""
            table.add_row(rank, name, _bytes(planned), _bytes(measured), off_words(planned, measured))
    show(console, indented(table))
    if len(shown) < len(report.memory):
        rest = len(report.memory) - len(shown)
        show(console, indented(Text(f"{plural(rest, 'rank')} closer to the plan in report.json", style="dim")))
    length = length_words(report, spec)
    if length:
        show(console, indented(Text(length)))


def length_words(report: Report, spec: JobSpec) -> str:
    """Why less may have been needed than planned: the plan is for sequences of full length. '' where they had it."""
    planned = report.num_tokens_planned_step
    counts = [m.num_tokens_measured_step for m in report.memory if m.num_tokens_measured_step is not None]
    if counts:
        most = max(counts)
        if most >= planned:
            return ""
        share = f"{100 * most // planned} %"
        return (
            f"The step measured held at most {most:,} tokens on a rank, {share} of the {planned:,} planned for: "
            "shorter sequences need less."
        )
    if spec.train.packing or report.num_truncated_samples != 0:
        return ""
    return (
        f"No row had to be cut to the {spec.train.sequence_length:,} tokens planned for: "
        "batches may have been shorter, and have needed less."
    )


def memory_rows(memory: RankMemory, *, on_gpu: bool) -> list[tuple[str, int | None, int | None]]:
    """(name, planned, measured) for what this device can tell."""
    allocated = ("allocated", memory.planned_allocated_bytes, memory.measured_allocated_bytes)
    if not on_gpu:
        return [allocated, ("resident (RSS)", memory.planned_process_bytes, memory.measured_rss_bytes)]
    return [
        allocated,
        ("reserved", memory.planned_reserved_bytes, memory.measured_reserved_bytes),
        ("whole process", memory.planned_process_bytes, memory.measured_process_bytes),
        ("host RAM (RSS)", None, memory.measured_rss_bytes),
    ]


def furthest_off(memory: tuple[RankMemory, ...], count: int) -> tuple[RankMemory, ...]:
    """At most `count` ranks: those whose allocated bytes are furthest from their plan, in the order of ranks."""

    def off(m: RankMemory) -> float:
        return abs(m.planned_allocated_bytes - m.measured_allocated_bytes) / max(1, m.measured_allocated_bytes)

    worst = sorted(memory, key=off, reverse=True)[:count]
    return tuple(sorted(worst, key=lambda m: m.rank))


def off_words(planned: int | None, measured: int | None) -> str:
    """How far the plan is from the measurement, in per cent of the measurement; '+' means planned too high."""
    if planned is None or not measured:
        return ""
    return f"{100 * (planned - measured) / measured:+.1f} %"


def _bytes(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)


# Where it is, and what next


def _show_places(report: Report, folder: RunFolder, console: Console) -> None:
    table = columns("lw")
    places = {
        "run folder": folder.root,
        "result": None if report.result is None else folder.root / report.result,
        "checkpoint": None if report.checkpoint is None else folder.root / report.checkpoint,
        "first example": folder.first_example,
        "logs": logs_folder(folder, report.attempt),
        "diagnosis": folder.diagnosis(report.attempt),
        "metrics": folder.metrics,
        "loss curve": folder.loss_curve,
        "report": folder.report,
    }
    for name, path in places.items():
        if path is not None and path.exists():
            table.add_row(name, shown_path(path, Path.cwd()))
    show(console, heading("Where it is"), indented(table))


def shown_path(path: Path, cwd: Path) -> str:
    """A path as short as it can be typed in `cwd`."""
    path = path.absolute()
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)


def _show_next(report: Report, spec: JobSpec, folder: RunFolder, console: Console) -> None:
    show(console, heading("What next"))
    for command, what in next_commands(report, spec, run_argument(folder.root)):
        show(console, indented(Text(shlex.join(command), style="bold")), indented(indented(Text(what, style="dim"))))


def next_commands(report: Report, spec: JobSpec, run: str) -> list[tuple[tuple[str, ...], str]]:
    """Commands that make sense now, each with what it does."""
    if report.status is Status.FINISHED:
        commands: list[tuple[tuple[str, ...], str]] = [
            (("fitlaunch", "generate", run), "answer a few prompts with base and result side by side")
        ]
        if spec.method.kind is not MethodKind.FULL:
            commands.append((("fitlaunch", "merge", run), "write the adapter merged into its base"))
        return commands
    if report.status is Status.STOPPED:
        again = "go on from that checkpoint" if report.checkpoint else "start again; nothing was saved"
        return [(("fitlaunch", "resume", run), again)]
    return [
        (("fitlaunch", "logs", run), "the whole log of the rank that failed first"),
        (("fitlaunch", "resume", run), "go on from the newest complete checkpoint, once the cause is gone"),
    ]
