"""A trace told as numbers: the peak of each phase, by category, and what the allocator makes of it."""

from __future__ import annotations

import pytest

from launcher.planner.tracing.events import Event, Kind, Label, Mark, Trace
from launcher.planner.tracing.summary import PhasePeak, summarise
from launcher.planner.types import Phase, TermKind
from launcher.units import MIB

WEIGHTS, STATES, WORK = 0, 1, 2
LABELS = (
    Label(operation="aten::_to_copy", category=TermKind.WEIGHTS),
    Label(operation="aten::zeros_like", category=TermKind.OPTIMIZER_STATES),
    Label(operation="aten::mm", category=TermKind.ACTIVATIONS),
)
MARKS = (
    Mark(phase=Phase.LOAD, step=0),
    Mark(phase=Phase.FORWARD, step=1),
    Mark(phase=Phase.OPTIMIZER, step=1),
    Mark(phase=Phase.FORWARD, step=2),
    Mark(phase=Phase.OPTIMIZER, step=2),
)


def mark(number: int) -> Event:
    return Event(Kind.MARK, label=number)


def take(block: int, size_bytes: int, label: int) -> Event:
    return Event(Kind.ALLOCATE, block, size_bytes, 0, label)


def give(block: int, size_bytes: int, label: int) -> Event:
    return Event(Kind.FREE, block, size_bytes, 0, label)


def step(first: int, *, makes_states: bool) -> list[Event]:
    """Forward with a temporary of 7 MiB and a workspace of 2 MiB on top of 3 MiB; states of 4 MiB in the first."""
    return [
        mark(first),
        take(10, 7 * MIB, WORK),
        give(10, 7 * MIB, WORK),
        take(11, 3 * MIB, WORK),
        Event(Kind.WORKSPACE, 0, 2 * MIB, 0, WORK),
        mark(first + 1),
        *([take(20, 4 * MIB, STATES)] if makes_states else []),
        give(11, 3 * MIB, WORK),
    ]


def trace(device: str) -> Trace:
    events = [mark(0), take(1, 10 * MIB, WEIGHTS), *step(1, makes_states=True), *step(3, makes_states=False)]
    return Trace(
        device=device, rank=2, world_size=4, num_steps=2, labels=LABELS, marks=MARKS, events=events, host_events=[]
    )


def peak(phase: Phase, **by_category: int) -> PhasePeak:
    names = {"weights": TermKind.WEIGHTS, "states": TermKind.OPTIMIZER_STATES, "work": TermKind.ACTIVATIONS}
    return PhasePeak(
        phase=phase.value, by_category={names[name].value: size * MIB for name, size in by_category.items()}
    )


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_each_phase_has_its_peak_and_the_first_step_is_one(device: str) -> None:
    found = summarise(trace(device))
    assert found.phases == (
        peak(Phase.LOAD, weights=10),
        peak(Phase.FIRST_STEP, weights=10, work=7),
        peak(Phase.FORWARD, weights=10, states=4, work=7),
        peak(Phase.OPTIMIZER, weights=10, states=4, work=3),
    )
    assert found.allocated_bytes == 21 * MIB


def test_a_workspace_counts_where_it_is_the_peak() -> None:
    events = [mark(0), take(1, MIB, WEIGHTS), Event(Kind.WORKSPACE, 0, 5 * MIB, 0, WORK), give(1, MIB, WEIGHTS)]
    found = summarise(Trace(device="cpu", rank=0, world_size=1, num_steps=0, labels=LABELS, marks=MARKS, events=events))
    assert found.phases == (peak(Phase.LOAD, weights=1, work=5),)


def test_the_allocator_is_asked_on_cuda_only() -> None:
    on_cuda, on_cpu = summarise(trace("cuda")), summarise(trace("cpu"))
    # pages of 20 MiB: 10 + 7, and 4 more where the freed 7 lie
    assert (on_cuda.reserved_bytes, on_cuda.least_capacity_bytes) == (40 * MIB, 40 * MIB)
    assert (on_cpu.reserved_bytes, on_cpu.least_capacity_bytes) == (21 * MIB, 21 * MIB)


def test_small_blocks_take_whole_granules_on_cuda() -> None:
    events = [mark(0), take(1, 100, WEIGHTS), take(2, 600, WORK)]
    of = {"rank": 0, "world_size": 1, "num_steps": 0, "labels": LABELS, "marks": MARKS, "events": events}
    assert summarise(Trace(device="cuda", **of)).allocated_bytes == 512 + 1024
    assert summarise(Trace(device="cpu", **of)).allocated_bytes == 700
