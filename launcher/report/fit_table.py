"""What fits, for people: one table of methods and shardings, and more where the question was about one job."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from launcher.fitting.types import Answer, Job, Row
from launcher.planner.types import Verdict
from launcher.report.console import columns, heading, indented, show
from launcher.report.describe import METHODS, SHARDS, batch_words, job_words, plural
from launcher.report.plan_table import (
    VERDICT_STYLE,
    common_unit,
    interval_words,
    ratio_words,
    show_suggestions,
    unit_words,
    verdict_words,
)
from launcher.spec import MethodKind, Offload, ShardKind
from launcher.units import format_bytes, format_count

OFFLOADED = {Offload.NONE: "", Offload.OPTIMIZER: ", states in host RAM", Offload.ALL: ", all in host RAM"}


def show_answer(answer: Answer, console: Console) -> None:
    """The whole answer."""
    device = answer.device
    card = "no card named" if device.memory_bytes is None else f"{device.name}, {format_bytes(device.memory_bytes)}"
    show(console, Text(f"{answer.model}, {format_count(answer.num_parameters)} parameters; {card}", style="bold"))
    batch = f"sequences of {answer.sequence_length:,} tokens, global batch {answer.global_batch}"
    show(console, Text(batch, style="dim"))
    _show_rows(answer, console)
    for refusal in answer.refused:
        show(console, indented(Text(f"not {' '.join(refusal.overrides)}: {refusal.reason}", style="dim")))
    if answer.job is not None:
        _show_job(answer.job, console)
    else:
        _show_advice(answer, console)


def _show_rows(answer: Answer, console: Console) -> None:
    has_card = answer.device.memory_bytes is not None
    unit, unit_bytes = common_unit(row.high_bytes for row in answer.rows)
    on_gpu = answer.device.kind == "cuda"
    where = "GPU" if on_gpu else "rank"
    show(console, heading("What fits", f"{unit} for each {where}, host RAM for each node; times are estimates"))
    titles = ("", "", f"{where}s", "needs", "at most", "host RAM")
    last = ("verdict", "micro batch", "sequence", f"{where} time") if has_card else ("smallest card",)
    table = columns("lwrrrr" + ("wrrr" if has_card else "w"), (*titles, *last))
    previous: MethodKind | None = None
    for row in answer.rows:
        table.add_row(
            METHODS[row.method] if row.method is not previous else "",
            shard_words(row),
            gpu_words(row),
            unit_words(row.process_bytes, unit_bytes),
            unit_words(row.high_bytes, unit_bytes),
            unit_words(row.host_ram_bytes_per_node, unit_bytes),
            *(_verdict_cells(row) if has_card else (row.smallest_card or "none that is listed",)),
        )
        previous = row.method
    show(console, indented(table))
    if has_card:
        note = "needs: with micro batch 1, or the one given; micro batch and sequence: the largest, one at a time"
        show(console, indented(Text(note, style="dim")))


def shard_words(row: Row) -> str:
    """'ZeRO-3, states in host RAM', 'one GPU'."""
    if row.shard is ShardKind.DDP and row.gpus_per_node * row.nodes == 1:
        return "no sharding"
    return SHARDS[row.shard] + OFFLOADED[row.offload]


def gpu_words(row: Row) -> str:
    """'8', '2 x 8' on several nodes."""
    return str(row.gpus_per_node) if row.nodes == 1 else f"{row.nodes} x {row.gpus_per_node}"


def _verdict_cells(row: Row) -> tuple[Text, str, str, str]:
    verdict = Text(row.verdict.value, style=VERDICT_STYLE[row.verdict])
    if row.largest_micro_batch is None or row.time_ratio is None:
        return verdict, "-", "-", "-"
    sequence = "-" if row.longest_sequence is None else f"{row.longest_sequence:,}"
    return verdict, f"{row.largest_micro_batch:,}", sequence, ratio_words(row.time_ratio)


def _show_advice(answer: Answer, console: Console) -> None:
    """What to type next: the quickest row that fits."""
    fitting = [row for row in answer.rows if row.time_ratio is not None]
    if not fitting:
        return
    best = min(fitting, key=lambda row: row.time_ratio or 0.0)
    command = " ".join(("python launch.py", *answer.words, *best.overrides))
    show(console, heading("The quickest"), indented(Text(command)))


def _show_job(job: Job, console: Console) -> None:
    plan = job.plan
    show(console, heading("This job"), indented(Text(job_words(plan.spec))), indented(Text(batch_words(plan.spec))))
    style = VERDICT_STYLE[plan.verdict]
    show(console, indented(Text(verdict_words(plan), style=f"bold {style}")))
    if plan.verdict is Verdict.TOO_CLOSE:
        show(console, indented(Text("launch.py mode=plan traces the job itself to be surer.", style="dim")))
    table = columns("lw")
    table.add_row("needs", f"{format_bytes(plan.process_bytes)}, {interval_words(plan)}")
    if plan.spec.device.kind == "cuda":
        table.add_row("smallest cards", ", ".join(job.cards) or "none that is listed")
        if plan.capacity_bytes is not None:
            fewest = f"{plural(job.fewest_gpus, 'GPU')}" if job.fewest_gpus else "more than a node of eight"
            table.add_row(f"fewest {plan.spec.device.name}", fewest)
    table.add_row("host RAM per node", format_bytes(plan.host_ram_bytes_per_node))
    show(console, indented(table))
    if plan.verdict in (Verdict.DOES_NOT_FIT, Verdict.TOO_CLOSE):
        show_suggestions(plan.suggestions, console)
