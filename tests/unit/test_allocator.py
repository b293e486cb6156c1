"""The caching allocator's replay: rounding by exact numbers, reuse, growth and release, and what must always hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.planner.allocator import PhasePeak, Replay, least_allocated_bytes, least_capacity_bytes, replay
from launcher.planner.allocator.caching import CachingAllocator, ExpandableSegments, FixedSegments
from launcher.planner.allocator.pool import Block
from launcher.planner.allocator.rules import GRANULE_BYTES
from launcher.planner.tracing.events import Event, Kind
from launcher.units import MIB

KINDS = pytest.mark.parametrize("kind", [FixedSegments, ExpandableSegments])


def taken(block: Block | None) -> Block:
    """The block, which must have been granted."""
    assert block is not None
    return block


def allocate(block: int, size_bytes: int, stream: int = 0) -> Event:
    return Event(Kind.ALLOCATE, block, size_bytes, stream)


def free(block: int) -> Event:
    return Event(Kind.FREE, block)


@pytest.mark.parametrize(
    ("kind", "request_bytes", "block_bytes", "reserved_bytes"),
    [
        (FixedSegments, 1, 512, 2 * MIB),
        (FixedSegments, 512, 512, 2 * MIB),
        (FixedSegments, 513, 1024, 2 * MIB),
        (FixedSegments, MIB, MIB, 2 * MIB),
        (FixedSegments, MIB + 1, MIB + 512, 20 * MIB),
        (FixedSegments, 8_519_680, 8_519_680, 20 * MIB),
        (FixedSegments, 10 * MIB - 1, 10 * MIB, 10 * MIB),
        (FixedSegments, 10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (FixedSegments, 10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        # Only more than 1 MiB is split off a large segment: here the block is all of it.
        (FixedSegments, 11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
        (FixedSegments, 11 * MIB, 12 * MIB, 12 * MIB),
        (ExpandableSegments, 1, 512, 2 * MIB),
        (ExpandableSegments, MIB, MIB, 2 * MIB),
        (ExpandableSegments, MIB + 1, MIB + 512, 20 * MIB),
        (ExpandableSegments, 11 * MIB, 11 * MIB, 20 * MIB),
        (ExpandableSegments, 20 * MIB, 20 * MIB, 20 * MIB),
        (ExpandableSegments, 20 * MIB + 1, 20 * MIB + 512, 40 * MIB),
    ],
)
def test_rounding(kind: type[CachingAllocator], request_bytes: int, block_bytes: int, reserved_bytes: int) -> None:
    device = kind()
    assert taken(device.allocate(request_bytes)).size_bytes == block_bytes
    assert (device.allocated_bytes, device.reserved_bytes) == (block_bytes, reserved_bytes)


@KINDS
def test_small_blocks_share_a_segment_and_streams_do_not(kind: type[CachingAllocator]) -> None:
    device = kind()
    for _ in range(4):
        device.allocate(512 * 1024)
    assert device.reserved_bytes == 2 * MIB
    block = taken(device.allocate(16 * MIB, stream=0))
    device.free(block)
    before = device.reserved_bytes
    assert taken(device.allocate(16 * MIB, stream=7)) is not block
    assert device.reserved_bytes - before == (16 * MIB if kind is FixedSegments else 20 * MIB)


def test_fixed_segments_take_the_smallest_that_is_big_enough() -> None:
    device = FixedSegments()
    blocks = [taken(device.allocate(size * MIB)) for size in (64, 32, 48)]
    for block in blocks:
        device.free(block)
    assert taken(device.allocate(40 * MIB)).address == blocks[2].address
    assert device.reserved_bytes == 144 * MIB


def test_fixed_segments_only_return_whole() -> None:
    device = FixedSegments()
    first, second = taken(device.allocate(6 * MIB)), taken(device.allocate(6 * MIB))
    assert device.reserved_bytes == 20 * MIB
    device.free(first)
    device.empty_cache()
    assert device.reserved_bytes == 20 * MIB
    device.free(second)
    device.empty_cache()
    assert device.reserved_bytes == 0


def test_expandable_segments_grow_the_free_tail() -> None:
    device = ExpandableSegments()
    device.allocate(20 * MIB)
    device.free(taken(device.allocate(15 * MIB)))
    assert device.reserved_bytes == 40 * MIB
    # 20 MiB are free at the end: 45 MiB map two pages more.
    assert taken(device.allocate(45 * MIB)).address == 20 * MIB
    assert device.reserved_bytes == 80 * MIB


def test_expandable_segments_return_the_pages_inside_a_free_block_and_map_them_again() -> None:
    device = ExpandableSegments()
    device.allocate(10 * MIB)
    middle = taken(device.allocate(50 * MIB))
    device.allocate(10 * MIB)
    assert device.reserved_bytes == 80 * MIB
    device.free(middle)
    device.empty_cache()
    # Free: 10..60 and 70..80 MiB. Whole pages in it: 20..60.
    assert device.reserved_bytes == 40 * MIB
    # The hole is found before the end of the segment; its first 10 MiB are still mapped.
    assert taken(device.allocate(25 * MIB)).address == 10 * MIB
    assert device.reserved_bytes == 60 * MIB


def test_expandable_segments_spare_the_block_that_can_grow() -> None:
    device = ExpandableSegments()
    first = taken(device.allocate(20 * MIB))
    device.allocate(20 * MIB)
    device.free(taken(device.allocate(15 * MIB)))
    device.free(first)
    # Both are 20 MiB; the lower address is first, and the tail counts as endless.
    assert taken(device.allocate(12 * MIB)).address == 0
    # 8 MiB are left over there: the best fit for 5 MiB.
    assert taken(device.allocate(5 * MIB)).address == 12 * MIB


@KINDS
def test_the_cache_is_emptied_once_before_memory_runs_out(kind: type[CachingAllocator]) -> None:
    device = kind(capacity_bytes=100 * MIB)
    device.free(taken(device.allocate(60 * MIB, stream=1)))
    assert taken(device.allocate(80 * MIB)).size_bytes == 80 * MIB
    assert (device.num_retries, device.reserved_bytes) == (1, 80 * MIB)
    assert device.allocate(40 * MIB) is None
    assert device.num_retries == 2


def test_a_replay_says_its_peaks_by_phase_and_where_it_failed() -> None:
    events = [
        Event(Kind.MARK, label=4),
        allocate(1, 30 * MIB),
        Event(Kind.WORKSPACE, size_bytes=10 * MIB),
        Event(Kind.MARK, label=5),
        free(1),
        Event(Kind.EMPTY_CACHE),
        allocate(1, 12 * MIB),
    ]
    assert replay(events, expandable=False) == Replay(
        peak_allocated_bytes=40 * MIB,
        peak_reserved_bytes=40 * MIB,
        num_retries=0,
        failed_at=None,
        phases=(
            PhasePeak(mark=4, allocated_bytes=40 * MIB, reserved_bytes=40 * MIB),
            PhasePeak(mark=5, allocated_bytes=30 * MIB, reserved_bytes=40 * MIB),
        ),
    )
    failed = replay(events, expandable=False, capacity_bytes=38 * MIB)
    assert (failed.survived, failed.failed_at, failed.peak_reserved_bytes) == (False, 2, 30 * MIB)


def test_the_least_capacity_is_less_than_what_is_reserved_without_a_limit() -> None:
    # Two streams never hold their 60 MiB at once, but each pool keeps them.
    events = [allocate(1, 60 * MIB, 0), free(1), allocate(2, 60 * MIB, 1), free(2)]
    for expandable in (False, True):
        assert replay(events, expandable=expandable).peak_reserved_bytes == 120 * MIB
        assert least_capacity_bytes(events, expandable=expandable) == 60 * MIB
    assert least_capacity_bytes([], expandable=True) == 0


# Sizes around every rule's edge, and any others.
sizes = st.one_of(
    st.sampled_from([1, 512, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 11 * MIB, 19 * MIB, 20 * MIB, 20 * MIB + 1]),
    st.integers(1, 90 * MIB),
)
# (size, stream) allocates, an index frees that one of the live blocks, None empties the cache.
steps = st.lists(st.one_of(st.tuples(sizes, st.integers(0, 2)), st.integers(0, 30), st.none()), max_size=60)


def neighbours(blocks: list[Block]) -> list[Block]:
    """All blocks of the segments that `blocks` are in, by address."""
    found: dict[int, Block] = {}
    for block in blocks:
        first = block
        while first.before is not None:
            first = first.before
        while first is not None:
            found[first.address] = first
            assert first.after is None or first.after.before is first
            assert first.after is None or first.after.address == first.address + first.size_bytes
            if first.after is None:
                break
            first = first.after
    return [found[address] for address in sorted(found)]


def check(device: CachingAllocator, live: list[Block]) -> None:
    """What must hold after every step."""
    cached = [block for pool in device.pools.values() for _, _, block in pool.free]
    unmapped = [block for pool in device.pools.values() for _, block in pool.unmapped]
    blocks = neighbours(live + cached + unmapped)
    assert {id(block) for block in blocks} == {id(block) for block in live + cached + unmapped}
    assert all(low.address + low.size_bytes <= high.address for low, high in pairwise(blocks))
    assert not any(block.free for block in live)
    assert all(block.free for block in cached + unmapped)
    assert device.allocated_bytes == sum(block.size_bytes for block in live)
    assert device.reserved_bytes == sum(block.size_bytes for block in live + cached)
    assert device.capacity_bytes is None or device.reserved_bytes <= device.capacity_bytes
    for low, high in pairwise(blocks):
        if low.after is high:
            assert not (low.free and high.free and low.mapped == high.mapped), "free neighbours are joined"
    for pool in device.pools.values():
        assert [entry[:2] for entry in pool.free] == sorted((b.size_bytes, b.address) for _, _, b in pool.free)
        for address, block in pool.unmapped:
            assert address == block.address
            assert address % pool.page_bytes == block.size_bytes % pool.page_bytes == 0


@KINDS
@given(steps=steps, capacity=st.one_of(st.none(), st.integers(1, 200).map(lambda count: count * GRANULE_BYTES)))
@settings(deadline=None)
def test_invariants(
    kind: type[CachingAllocator], steps: list[tuple[int, int] | int | None], capacity: int | None
) -> None:
    device = kind(capacity)
    live: list[Block] = []
    for step in steps:
        if step is None:
            device.empty_cache()
        elif isinstance(step, tuple):
            block = device.allocate(*step)
            if block is not None:
                assert block.size_bytes >= step[0]
                live.append(block)
        elif live:
            device.free(live.pop(step % len(live)))
        check(device, live)
    while live:
        device.free(live.pop())
    check(device, live)
    assert device.allocated_bytes == 0
    for pool in device.pools.values():
        for _, _, block in pool.free:
            assert block.before is None or not block.before.mapped
            assert block.after is None or not block.after.mapped
    device.empty_cache()
    assert device.reserved_bytes == 0


def as_events(steps: list[tuple[int, int] | int | None]) -> list[Event]:
    """The steps as a recorded stream."""
    events: list[Event] = []
    live: list[int] = []
    for number, step in enumerate(steps):
        if step is None:
            events.append(Event(Kind.EMPTY_CACHE))
        elif isinstance(step, tuple):
            events.append(allocate(number, *step))
            live.append(number)
        elif live:
            events.append(free(live.pop(step % len(live))))
    return events


@given(steps=steps, expandable=st.booleans())
@settings(deadline=None)
def test_the_least_capacity_survives_and_a_granule_less_does_not(
    steps: list[tuple[int, int] | int | None], expandable: bool
) -> None:
    events = as_events(steps)
    unlimited = replay(events, expandable=expandable)
    least = least_capacity_bytes(events, expandable=expandable)
    assert least_allocated_bytes(events) <= least <= unlimited.peak_reserved_bytes
    assert least_allocated_bytes(events) <= unlimited.peak_allocated_bytes <= unlimited.peak_reserved_bytes
    assert replay(events, expandable=expandable, capacity_bytes=least).survived
    if least:
        assert not replay(events, expandable=expandable, capacity_bytes=least - GRANULE_BYTES).survived


@given(steps=steps)
@settings(deadline=None)
def test_with_expandable_segments_what_is_allocated_is_what_is_asked_for(
    steps: list[tuple[int, int] | int | None],
) -> None:
    events = as_events(steps)
    assert replay(events, expandable=True).peak_allocated_bytes == least_allocated_bytes(events)
