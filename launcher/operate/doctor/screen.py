"""A check-up for people: every node in a table, how fast they reduce, and what is wrong with which."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher.operate.doctor.types import AllReduced, Answers, Checkup, Finding, NodeReport
from launcher.report.console import columns, heading, indented, show
from launcher.report.describe import plural
from launcher.report.outcome import shown_path
from launcher.units import format_bytes

ALL_IS_WELL = "Nothing is wrong."


def show_checkup(checkup: Checkup, folder: Path | None, console: Console) -> None:
    """The nodes, the all-reduce, what is wrong, and how to keep away from it. folder: where the logs are."""
    if checkup.answers.hosts or checkup.answers.reports:
        _show_nodes(checkup, console)
    if checkup.answers.reduced:
        show(console, heading("All-reduce"), indented(Text(all_reduce_words(checkup.answers.reduced.values()))))
    if not checkup.findings:
        show(console, Text(f"\n{ALL_IS_WELL}", style="green"))
        return
    show(console, heading("What is wrong"))
    for where, rule, way_out in finding_lines(checkup):
        show(console, indented(Text.assemble((f"{where} ", "bold"), (rule, "red"))))
        if way_out:
            show(console, indented(indented(Text(way_out, style="green"))))
    exclude = exclude_words(checkup)
    if exclude:
        show(console, heading("Keep away from them"), *(indented(Text(line, style="bold")) for line in exclude))
    if folder is not None:
        show(console, Text(f"\nWhat the nodes said is in {shown_path(folder, Path.cwd())}", style="dim"))


def _show_nodes(checkup: Checkup, console: Console) -> None:
    answers = checkup.answers
    wrong = {finding.node for finding in checkup.findings}
    table = columns("lllrrrrl", ("node", "address", "network", "cores", "RAM free", "disk free", "shm free", "GPUs"))
    names = dict(enumerate(answers.hosts)) or {node: report.host for node, report in answers.reports.items()}
    for node, name in names.items():
        table.add_row(Text(name, style="bold red" if node in wrong else "bold"), *_row(answers.reports.get(node)))
    show(console, heading(plural(len(names), "node"), checkup.kind), indented(table))


def _row(report: NodeReport | None) -> tuple[str, ...]:
    if report is None:
        return ("-",) * 7
    disk = "-" if report.disk_free_bytes is None else format_bytes(report.disk_free_bytes)
    return (
        report.address or "-",
        report.interface or "-",
        str(report.num_cores),
        format_bytes(report.ram_available_bytes),
        disk,
        format_bytes(report.shm_free_bytes),
        gpu_words(report),
    )


def gpu_words(report: NodeReport) -> str:
    """'8 x NVIDIA H100', 'none'."""
    if not report.num_gpus:
        return "none"
    return f"{report.num_gpus} x {', '.join(sorted(set(report.gpu_names)))}"


def all_reduce_words(reduced: Iterable[AllReduced]) -> str:
    """'gloo over 4 ranks on node1, node2: 16.00 MiB in 0.031 s (516.1 MiB/s)'; the slowest rank's time."""
    ranks = sorted(reduced, key=lambda each: each.rank)
    slowest = max(ranks, key=lambda each: each.seconds)
    hosts = ", ".join(dict.fromkeys(each.host for each in ranks))
    speed = f"{format_bytes(slowest.size_bytes)} in {slowest.seconds:.3f} s"
    rate = f"{format_bytes(round(slowest.bytes_per_s))}/s"
    return f"{slowest.backend} over {plural(len(ranks), 'rank')} on {hosts}: {speed} ({rate})"


def finding_lines(checkup: Checkup) -> list[tuple[str, str, str]]:
    """Where, what and the way out; nodes with the same trouble share a line."""
    together: dict[tuple[str, str], list[str]] = {}
    for finding in checkup.findings:
        together.setdefault((finding.rule, finding.way_out), []).append(_where(finding, checkup.answers))
    return [(", ".join(filter(None, where)), *what) for what, where in together.items()]


def _where(finding: Finding, answers: Answers) -> str:
    if finding.node is None:
        return ""
    return answers.hosts[finding.node] if finding.node < len(answers.hosts) else f"node {finding.node}"


def exclude_words(checkup: Checkup) -> tuple[str, ...]:
    """The line for sbatch and the override for launch.py; for a list of hosts, what to take out of it."""
    if len(checkup.failing) in (0, len(checkup.answers.hosts)) or checkup.kind == "local":
        return ()  # where all are at fault there is nobody to turn to
    names = ",".join(checkup.failing)
    if checkup.kind == "slurm":
        return (f"--exclude={names}", f"cluster.exclude=[{names}]")
    return (f"take {names.replace(',', ', ')} out of the hostfile",)
