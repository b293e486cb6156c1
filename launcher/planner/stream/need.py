"""What a rank's process takes, by the replay of its own stream instead of a share of what is allocated."""

from __future__ import annotations

from launcher.planner.allocator import replay
from launcher.planner.stream.step import events, is_written_down
from launcher.planner.types import Term, TermKind
from launcher.planner.workload import Workload

WORKSPACES_ON_TOP = ("cuBLAS workspace",)


def reserved_bytes(work: Workload, terms: tuple[Term, ...]) -> int | None:
    """What the caching allocator will have reserved at the peak of training, on a card of the job's size; None where
    the stream is not known.

    The workspaces that a stream does not have, cuBLAS', are held beside it.
    """
    if not is_written_down(work):
        return None
    beside = sum(term.size_bytes for term in terms if term.name in WORKSPACES_ON_TOP)
    outside = sum(term.size_bytes for term in terms if term.kind is TermKind.OUTSIDE)
    capacity = work.spec.device.memory_bytes
    limit = None if capacity is None else capacity - outside - beside
    stream = events(work)
    expandable = work.practice.expandable_segments
    found = replay(stream, expandable=expandable, capacity_bytes=limit)
    if not found.survived:
        found = replay(stream, expandable=expandable)
    return found.peak_reserved_bytes + beside
