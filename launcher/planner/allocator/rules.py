"""How PyTorch's CUDA caching allocator rounds: torch 2.13, c10/core/AllocatorConfig.h and CUDACachingAllocator.cpp."""

from __future__ import annotations

from launcher.units import MIB, round_up

# AllocatorConfig.h: kMinBlockSize, kSmallSize, kSmallBuffer, kMinLargeAlloc, kRoundLarge, large_segment_size_.
MIN_BLOCK_BYTES = 512
LARGEST_SMALL_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LEAST_LARGE_BYTES = 10 * MIB
LARGE_ROUNDING_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB

# Every segment and every mapped page is a multiple of this.
GRANULE_BYTES = 2 * MIB


def block_bytes(size_bytes: int) -> int:
    """A request rounded to whole blocks: round_size."""
    return max(MIN_BLOCK_BYTES, round_up(size_bytes, MIN_BLOCK_BYTES))


def is_small(rounded_bytes: int) -> bool:
    """Whether a rounded request is served by the stream's small pool: get_pool."""
    return rounded_bytes <= LARGEST_SMALL_BYTES


def segment_bytes(rounded_bytes: int) -> int:
    """What cudaMalloc is asked for when no cached block serves a rounded request: get_allocation_size."""
    if is_small(rounded_bytes):
        return SMALL_SEGMENT_BYTES
    if rounded_bytes < LEAST_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return round_up(rounded_bytes, LARGE_ROUNDING_BYTES)


def page_bytes(small: bool) -> int:
    """What an expandable segment grows by: ExpandableSegment's segment_size_."""
    return SMALL_SEGMENT_BYTES if small else LARGE_SEGMENT_BYTES


def least_remainder_bytes(small: bool, expandable: bool) -> int:
    """A block is split when at least this much of it would be left over: should_split, max_split_size unlimited."""
    return MIN_BLOCK_BYTES if small or expandable else LARGEST_SMALL_BYTES + 1
