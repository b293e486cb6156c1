"""What a plan takes from a trace: the peak of each phase and what it consisted of, and what the allocator makes of it.

A trace has tens of thousands of events and this a few hundred numbers, so it is what the cache keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from launcher.planner.allocator import least_capacity_bytes, replay
from launcher.planner.allocator.rules import block_bytes
from launcher.planner.tracing.events import Event, Kind, Mark, Trace
from launcher.planner.types import Phase

STEP_PHASES = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)


class PhasePeak(msgspec.Struct, frozen=True, kw_only=True):
    """The highest that a phase stood. by_category: its bytes by launcher.planner.types.TermKind values."""

    phase: str
    by_category: Mapping[str, int]

    @property
    def allocated_bytes(self) -> int:
        return sum(self.by_category.values())


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank's trace says.

    phases: in the order of Phase; the first optimizer step is one of them, the others are of the steps after it.
    reserved_bytes, least_capacity_bytes: of the caching allocator with expandable segments, as the job sets them; on
    CPU both are the peak.
    host_peak_bytes: of tensors in host RAM, 0 where the device is the host.
    """

    rank: int
    phases: tuple[PhasePeak, ...]
    reserved_bytes: int
    least_capacity_bytes: int
    host_peak_bytes: int
    versions: Mapping[str, str]
    assumptions: tuple[str, ...]
    wall_s: float
    peak_rss_bytes: int

    @property
    def allocated_bytes(self) -> int:
        """The highest of all phases."""
        return max((phase.allocated_bytes for phase in self.phases), default=0)


def summarise(trace: Trace) -> Summary:
    """The summary of a trace."""
    on_cuda = trace.device == "cuda"
    categories = [label.category for label in trace.labels]
    phases = peaks(trace.events, trace.marks, categories, size_of=block_bytes if on_cuda else _as_asked)
    highest = max((phase.allocated_bytes for phase in phases), default=0)
    host = peaks(trace.host_events, trace.marks, categories, size_of=_as_asked)
    reserved = least = highest
    if on_cuda:
        reserved = replay(trace.events, expandable=True).peak_reserved_bytes
        least = least_capacity_bytes(trace.events, expandable=True, reserved_bytes=reserved)
    return Summary(
        rank=trace.rank,
        phases=phases,
        reserved_bytes=reserved,
        least_capacity_bytes=least,
        host_peak_bytes=max((phase.allocated_bytes for phase in host), default=0),
        versions=trace.versions,
        assumptions=trace.assumptions,
        wall_s=trace.wall_s,
        peak_rss_bytes=trace.peak_rss_bytes,
    )


def phase_of(mark: Mark) -> Phase:
    """The phase of the plan that a mark begins: every part of the first step is the first step."""
    phase = Phase(mark.phase)
    return Phase.FIRST_STEP if phase in STEP_PHASES and mark.step == 1 else phase


def peaks(
    events: Sequence[Event], marks: Sequence[Mark], categories: Sequence[str], *, size_of: Callable[[int], int]
) -> tuple[PhasePeak, ...]:
    """The highest moment of each phase. size_of: what a block of so many bytes takes."""
    now = dict.fromkeys(categories, 0)
    total = 0
    phase: Phase | None = None
    highest: dict[Phase, tuple[int, dict[str, int]]] = {}
    # A peak is only known to be one when something is freed: until then it may still rise.
    for event in events:
        kind, category = event.kind, categories[event.label] if event.kind is not Kind.MARK else ""
        size_bytes = size_of(event.size_bytes)
        if kind is Kind.ALLOCATE:
            now[category] += size_bytes
            total += size_bytes
        elif kind is Kind.FREE:
            _note(highest, phase, total, now)
            now[category] -= size_bytes
            total -= size_bytes
        elif kind is Kind.WORKSPACE:
            now[category] += size_bytes
            _note(highest, phase, total + size_bytes, now)
            now[category] -= size_bytes
        elif kind is Kind.MARK:
            _note(highest, phase, total, now)
            phase = phase_of(marks[event.label])
    _note(highest, phase, total, now)
    return tuple(
        PhasePeak(phase=phase.value, by_category={name: size for name, size in highest[phase][1].items() if size})
        for phase in Phase
        if phase in highest
    )


def _note(
    highest: dict[Phase, tuple[int, dict[str, int]]], phase: Phase | None, total: int, now: Mapping[str, int]
) -> None:
    if phase is not None and (phase not in highest or total > highest[phase][0]):
        highest[phase] = (total, dict(now))


def _as_asked(size_bytes: int) -> int:
    return size_bytes
