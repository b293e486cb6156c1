"""A recorded stream put through the caching allocator: what it reserves, and the least memory that it survives on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.planner.allocator.caching import CachingAllocator, ExpandableSegments, FixedSegments
from launcher.planner.allocator.pool import Block
from launcher.planner.allocator.rules import GRANULE_BYTES, block_bytes
from launcher.planner.tracing.events import Event, Kind
from launcher.units import round_up

# How many capacities above an answer are tried as well, because survival is not monotonic.
NUM_PROBES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePeak:
    """The highest that the allocator stood between a MARK and the next one. mark: into Trace.marks."""

    mark: int
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the allocator made of a stream.

    failed_at: the event that ran out of memory; None where the whole stream survived. Peaks are those until then.
    num_retries: how often the cache was emptied because memory ran out. Each costs a synchronisation.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    num_retries: int
    failed_at: int | None
    phases: tuple[PhasePeak, ...]

    @property
    def survived(self) -> bool:
        return self.failed_at is None


def new_allocator(*, expandable: bool, capacity_bytes: int | None = None) -> CachingAllocator:
    """An allocator that has reserved nothing yet."""
    return ExpandableSegments(capacity_bytes) if expandable else FixedSegments(capacity_bytes)


def replay(events: Sequence[Event], *, expandable: bool, capacity_bytes: int | None = None) -> Replay:
    """Put the events through a fresh allocator that may reserve capacity_bytes (None: without limit)."""
    allocator = new_allocator(expandable=expandable, capacity_bytes=capacity_bytes)
    allocate, free = allocator.allocate, allocator.free
    live: dict[int, Block] = {}
    phases: list[PhasePeak] = []
    mark: int | None = None
    highest_allocated = highest_reserved = 0

    def close_phase() -> None:
        nonlocal highest_allocated, highest_reserved
        if mark is not None:
            phases.append(
                PhasePeak(
                    mark=mark,
                    allocated_bytes=allocator.peak_allocated_bytes,
                    reserved_bytes=allocator.peak_reserved_bytes,
                )
            )
        highest_allocated = max(highest_allocated, allocator.peak_allocated_bytes)
        highest_reserved = max(highest_reserved, allocator.peak_reserved_bytes)
        allocator.reset_peaks()

    failed_at = None
    for number, event in enumerate(events):
        kind = event.kind
        if kind is Kind.ALLOCATE:
            block = allocate(event.size_bytes, event.stream)
            if block is None:
                failed_at = number
                break
            live[event.block] = block
        elif kind is Kind.FREE:
            free(live.pop(event.block))
        elif kind is Kind.WORKSPACE:
            block = allocate(event.size_bytes, event.stream)
            if block is None:
                failed_at = number
                break
            free(block)
        elif kind is Kind.EMPTY_CACHE:
            allocator.empty_cache()
        else:
            close_phase()
            mark = event.label
    close_phase()
    return Replay(
        peak_allocated_bytes=highest_allocated,
        peak_reserved_bytes=highest_reserved,
        num_retries=allocator.num_retries,
        failed_at=failed_at,
        phases=tuple(phases),
    )


def least_allocated_bytes(events: Sequence[Event]) -> int:
    """The peak of all blocks together, each rounded and none wasted: no allocator of this kind needs less."""
    live: dict[int, int] = {}
    now = peak = 0
    for event in events:
        if event.kind is Kind.ALLOCATE:
            live[event.block] = size_bytes = block_bytes(event.size_bytes)
            now += size_bytes
            peak = max(peak, now)
        elif event.kind is Kind.FREE:
            now -= live.pop(event.block)
        elif event.kind is Kind.WORKSPACE:
            peak = max(peak, now + block_bytes(event.size_bytes))
    return peak


def least_capacity_bytes(events: Sequence[Event], *, expandable: bool, reserved_bytes: int | None = None) -> int:
    """The least memory, in whole granules of 2 MiB, on which the stream survives: with one granule less it fails.

    reserved_bytes: what the stream reserves without any limit, where that is known.
    Survival is not monotonic: emptying the cache earlier can leave a worse layout than emptying it later. So the
    answer is a boundary above which evenly spaced probes, up to what the stream reserves without any limit, survive
    as well; a probe that fails moves the search above it.
    """
    surviving = replay(events, expandable=expandable).peak_reserved_bytes if reserved_bytes is None else reserved_bytes
    if surviving == 0:
        return 0
    failing = round_up(least_allocated_bytes(events), GRANULE_BYTES) - GRANULE_BYTES
    while True:
        boundary = _boundary(events, expandable, failing, surviving)
        hole = _highest_failure(events, expandable, boundary, surviving)
        if hole is None:
            return boundary
        failing = hole


def _survives(events: Sequence[Event], expandable: bool, capacity_bytes: int) -> bool:
    return replay(events, expandable=expandable, capacity_bytes=capacity_bytes).survived


def _boundary(events: Sequence[Event], expandable: bool, failing: int, surviving: int) -> int:
    """Bisect to a capacity that survives where one granule less fails."""
    while surviving - failing > GRANULE_BYTES:
        middle = failing + (surviving - failing) // (2 * GRANULE_BYTES) * GRANULE_BYTES
        if _survives(events, expandable, middle):
            surviving = middle
        else:
            failing = middle
    return surviving


def _highest_failure(events: Sequence[Event], expandable: bool, boundary: int, surviving: int) -> int | None:
    """The highest of NUM_PROBES capacities between the two that fails after all."""
    step = round_up((surviving - boundary) // (NUM_PROBES + 1), GRANULE_BYTES)
    if step == 0:
        return None
    probes = range(boundary + step, surviving, step)
    return next((probe for probe in reversed(probes) if not _survives(events, expandable, probe)), None)
