"""Tables in terminals of several widths: no line is overrun, and every number and command stands there whole."""

from __future__ import annotations

import dataclasses
import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from launcher.planner.types import MemoryPlan, Suggestion, Verdict
from launcher.report.console import make_console
from launcher.report.plan_table import PHASES_WIDTH, show_plan
from launcher.report.sweep_table import CellResult, show_results, show_sweep
from launcher.runs.records import Status
from launcher.units import GIB
from tests.report_fixtures import RTX4090, SUGGESTIONS, plan, rank_plan, run_folder, spec
from tests.unit.test_report_progress import on_a_terminal

WIDTHS = (80, 100, 140)
SMALL_CARD = spec(device=dataclasses.replace(RTX4090, memory_bytes=12 * GIB))
LONG = Suggestion(
    overrides=("shard=zero3", "shard.offload=all", "train.micro_batch=1", "train.activation_checkpointing=full"),
    process_bytes=4 * GIB,
    time_ratio=1.62,
    changes_training=False,
    note="zero3, parameters and optimizer states in host RAM",
)


def large_plan() -> MemoryPlan:
    """Ranks that differ, hundreds of GiB in a phase, and suggestions that are too long for one line."""
    save = rank_plan((0,), saves=True)
    whole = tuple(dataclasses.replace(term, size_bytes=term.size_bytes * 16) for term in save.terms)
    ranks = (dataclasses.replace(save, terms=whole), rank_plan(tuple(range(1, 8))))
    return plan(SMALL_CARD, ranks=ranks, verdict=Verdict.DOES_NOT_FIT, suggestions=(*SUGGESTIONS, LONG))


def in_a_pipe(draw: Callable[[Console], None]) -> str:
    out = io.StringIO()
    draw(make_console(out))
    return out.getvalue()


def on_columns(draw: Callable[[Console], None], columns: int) -> str:
    """What stands on a terminal so wide, without colours."""
    out = io.StringIO()
    draw(Console(file=out, width=columns, force_terminal=True, highlight=False, markup=False, emoji=False))
    return "\n".join(Text.from_ansi(line).plain.rstrip() for line in out.getvalue().splitlines())


def numbers(text: str) -> Counter[str]:
    """Every number with a decimal point or a thousands' comma, as often as it is there."""
    return Counter(re.findall(r"\d[\d,]*\.\d+|\d+(?:,\d{3})+", text))


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("explain", [False, True])
def test_a_plan_keeps_its_numbers(columns: int, explain: bool) -> None:
    def draw(console: Console) -> None:
        show_plan(large_plan(), console, explain=explain)

    text = on_columns(draw, columns)
    assert numbers(text) == numbers(in_a_pipe(draw))
    assert max(map(len, text.splitlines())) <= columns


def test_a_suggestion_is_folded_between_its_words() -> None:
    text = on_columns(lambda console: show_plan(large_plan(), console), 80)
    words = set(text.split())
    assert words >= {word for suggestion in (*SUGGESTIONS, LONG) for word in suggestion.overrides}


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_phases_of_an_explained_plan_line_up(columns: int) -> None:
    text = on_columns(lambda console: show_plan(large_plan(), console, explain=True), columns)
    heads = [line for line in text.splitlines() if re.match(r"^ +(load|backward) ", line)]
    assert len(heads) == (2 if columns < PHASES_WIDTH else 1)
    rows = [line for line in text.splitlines() if re.match(r"^  allocated +\S+ +\S+ +\S+ +\S+( |$)(?!%)", line)]
    rows = [row for row in rows if "%" not in row]
    assert len(rows) == len(heads)
    for head, row in zip(heads, rows, strict=True):
        ends = [match.end() for match in re.finditer(r"\S+(?: \S+)*", head)]
        assert [match.end() for match in re.finditer(r"[\d.]+|-(?= |$)", row)] == ends


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_sweep_keeps_its_numbers_and_verdicts(columns: int) -> None:
    verdicts = [Verdict.FITS, Verdict.TOO_CLOSE, Verdict.DOES_NOT_FIT]
    plans = [plan(verdict=verdict) for verdict in verdicts]
    overrides = [
        ("model=llama3-8b", f"method={method}", f"train.learning_rate={rate}", "shard=zero3")
        for method, rate in (("lora", "1e-4"), ("qlora", "2e-4"), ("full", "2e-4"))
    ]

    def draw(console: Console) -> None:
        show_sweep(plans, console, overrides=overrides)

    text = on_columns(draw, columns)
    assert numbers(text) == numbers(in_a_pipe(draw))
    assert max(map(len, text.splitlines())) <= columns
    # A verdict may be folded, but between its words.
    assert set(text.split()) >= {"learning_rate", "1e-4", "qlora", "too", "close", "to", "call", "does", "not", "fit"}


@pytest.mark.parametrize("columns", WIDTHS)
def test_results_keep_their_numbers(columns: int, tmp_path: Path) -> None:
    job = spec(gpus_per_node=2)
    results = [
        CellResult(
            number=number,
            overrides=(f"shard={shard}", f"method={method}"),
            plan=plan(job),
            outcome=dataclasses.replace(
                run_folder(tmp_path / shard, job, status=Status.FINISHED), run_dir=Path("/runs") / shard
            ),
        )
        for number, (shard, method) in enumerate((("zero3", "lora"), ("fsdp", "qlora")))
    ]

    def draw(console: Console) -> None:
        show_results(results, console)

    text = on_columns(draw, columns)
    assert numbers(text) == numbers(in_a_pipe(draw))
    assert max(map(len, text.splitlines())) <= columns
    assert "3.0000 -> 1.2000" in text


DRAW = """
from launcher.report.console import make_console
from launcher.report.plan_table import PHASES_WIDTH, show_plan
from tests.unit.test_report_terminal import large_plan
show_plan(large_plan(), make_console())
"""


def test_a_real_terminal_of_80_columns_gets_blocks_and_whole_lines() -> None:
    code, drawn = on_a_terminal(DRAW, columns=80)
    lines = [Text.from_ansi(line).plain.rstrip() for line in drawn.replace("\r", "").split("\n")]
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert numbers("\n".join(lines)) == numbers(in_a_pipe(lambda console: show_plan(large_plan(), console)))
    bars = [line for line in lines if line.startswith("[")]
    assert len(bars) == 1
    assert re.fullmatch(r"\[█+\]█+▒*  █ needed  ▒ uncertain  · free", bars[0])
