"""What people and programs see of a plan: whole screens held against goldens, and the bars' arithmetic."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from launcher.planner.types import MemoryPlan, Phase, Verdict
from launcher.render.types import LaunchPlan
from launcher.report.bar import capacity_cells, share_cells
from launcher.report.console import make_console
from launcher.report.describe import num_parameters, num_trainable_parameters, phase_words, rank_range_words
from launcher.report.launch_table import show_launch
from launcher.report.plan_json import plan_json, plans_json
from launcher.report.plan_table import show_plan
from launcher.report.sweep_table import differing, show_sweep
from launcher.spec import MethodKind, MethodSpec, ShardKind
from launcher.units import GIB
from tests.report_fixtures import ANY, CPU, RTX4090, SUGGESTIONS, plan, rank_plan, spec

Golden = Callable[[str, str], None]
FULL = MethodSpec(kind=MethodKind.FULL)
T4 = dataclasses.replace(RTX4090, name="t4", memory_bytes=12 * GIB)
ONE_CARD_FOR_ALL = plan(spec(device=ANY), verdict=Verdict.NO_CARD, smallest_card="a10")

PLANS = {
    "fits": plan(),
    "too-close": plan(spec(device=dataclasses.replace(T4, memory_bytes=14 * GIB)), verdict=Verdict.TOO_CLOSE),
    "does-not-fit": plan(spec(device=T4), verdict=Verdict.DOES_NOT_FIT, smallest_card="a10", suggestions=SUGGESTIONS),
    "no-card": ONE_CARD_FOR_ALL,
    "cpu": plan(spec(method=FULL, device=CPU, gpus_per_node=2, shard=ShardKind.DDP)),
    "one-rank": plan(spec(gpus_per_node=1, shard=ShardKind.DDP)),
}


def shown(value: MemoryPlan, *, explain: bool = False) -> str:
    out = io.StringIO()
    show_plan(value, make_console(out), explain=explain)
    return out.getvalue()


@pytest.mark.parametrize("name", PLANS)
def test_plan_in_a_pipe(name: str, golden: Golden) -> None:
    golden(f"report/plan-{name}.txt", shown(PLANS[name]))


def test_explained_plan_whose_ranks_differ(golden: Golden) -> None:
    ranks = (rank_plan((0,), saves=True), rank_plan(tuple(range(1, 8))))
    golden("report/plan-explain.txt", shown(plan(ranks=ranks), explain=True))


@pytest.mark.parametrize("name", PLANS)
def test_a_pipe_gets_plain_ascii_and_no_trailing_space(name: str) -> None:
    text = shown(PLANS[name], explain=True)
    assert text.isascii()
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("columns", [80, 100, 140])
@pytest.mark.parametrize("name", PLANS)
def test_a_terminal_is_never_overrun_and_no_number_is_cut(name: str, columns: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=columns, force_terminal=True, color_system="truecolor", highlight=False)
    show_plan(PLANS[name], console, explain=True)

    lines = [Text.from_ansi(line).plain for line in out.getvalue().splitlines()]
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert "…" not in out.getvalue()


def test_sweep(golden: Golden) -> None:
    plans = [plan(), PLANS["too-close"], PLANS["does-not-fit"], ONE_CARD_FOR_ALL]
    overrides = [
        ("gpus=8", "method=lora", "shard=zero3"),
        ("gpus=8", "method=lora", "shard=ddp"),
        ("gpus=8", "method=full", "shard=ddp"),
        ("gpus=8", "method=full", "shard=zero3"),
    ]
    out = io.StringIO()
    show_sweep(plans, make_console(out), overrides=overrides)
    golden("report/sweep.txt", out.getvalue())


def test_launch_plan(golden: Golden) -> None:
    launch = LaunchPlan(
        run_id="20260101-tiny",
        run_dir="/home/me/my runs/20260101-tiny",
        argv=("/venv/bin/python", "-m", "jobs.train", "--run", "/home/me/my runs/20260101-tiny"),
        env={"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        files={"job.json": "x" * 3000, "deepspeed.json": "{}"},
    )
    out = io.StringIO()
    show_launch(launch, make_console(out))
    golden("report/launch.txt", out.getvalue())


def test_json_is_the_frozen_plan_and_what_follows_from_it() -> None:
    value = plan(ranks=(rank_plan((0,), saves=True), rank_plan(tuple(range(1, 8)))))
    document = msgspec.json.decode(plan_json(value))
    derived = document.pop("derived")
    assert msgspec.convert(document, MemoryPlan) == value
    assert derived["num_parameters"] == 655_680
    assert derived["world_size"] == 8
    assert derived["gradient_accumulation"] == 2
    first, others = derived["ranks"]
    assert (first["ranks"], first["peak_phase"], first["allocated_bytes"]) == ([0], "save", 61 * GIB // 4)
    assert (others["peak_phase"], others["outside_bytes"]) == ("loss", GIB // 2)
    assert others["allocated_bytes_by_phase"]["optimizer"] == 4 * GIB
    assert others["allocated_bytes_by_kind_at_peak"]["logits and loss"] == 6 * GIB
    assert sum(others["allocated_bytes_by_kind_at_peak"].values()) == others["allocated_bytes"]


def test_json_of_a_multirun_is_an_array() -> None:
    documents = msgspec.json.decode(plans_json([plan(), ONE_CARD_FOR_ALL]))
    assert [document["verdict"] for document in documents] == ["fits", "no card named"]


def test_parameters_of_the_tiny_model() -> None:
    assert num_parameters(spec()) == 655_680
    assert num_trainable_parameters(spec()) == 2 * 2 * (64 * 8 + 8 * 64)
    assert num_trainable_parameters(spec(method=FULL)) == 655_680


def test_differing_keys_only() -> None:
    cells = [("a=1", "b=2", "c=x=y"), ("a=1", "b=3", "c=x=y"), ("a=1", "c=z")]
    assert differing(cells) == (("b", "c"), [("2", "x=y"), ("3", "x=y"), ("", "z")])
    assert differing([("a=1",)]) == ((), [()])


def test_phases_and_ranks_in_words() -> None:
    assert phase_words(tuple(Phase)) == "all phases"
    assert phase_words((Phase.SAVE, Phase.LOSS, Phase.FORWARD)) == "forward to loss, save"
    assert rank_range_words((0,)) == "rank 0"
    assert rank_range_words((1, 2, 3)) == "ranks 1-3"
    assert rank_range_words((0, 2)) == "ranks 0, 2"


sizes = st.integers(min_value=1, max_value=2**45)


@given(first=sizes, second=sizes, capacity=sizes)
def test_bar_sticks_out_of_the_card_exactly_when_the_need_does(first: int, second: int, capacity: int) -> None:
    low, high = sorted((first, second))
    cells = capacity_cells(low, high, capacity, 48)
    inside, beyond = cells.used + cells.uncertain + cells.free, cells.used_beyond + cells.uncertain_beyond
    assert inside + beyond == 48
    assert min(dataclasses.astuple(cells)) >= 0
    assert (beyond > 0) == (high > capacity)
    assert (cells.used_beyond > 0) == (low > capacity)


def test_a_share_of_something_is_never_nothing() -> None:
    assert [share_cells(part, 100, 10) for part in (0, 1, 50, 100, 300)] == [0, 1, 5, 10, 10]
