"""What torch's CPU allocator has handed out, phase by phase, from its own count.

The profiler alone would not do: it sees nothing that was allocated before it started, nor what the threads of gloo
free. c10 can count the allocations and frees of all threads, and its count stands in each of the profiler's events.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _EventType, _ProfilerEvent

from launcher.planner.types import Phase

MARK = "fitlaunch phase "
NUM_LARGEST = 40


def count_allocations() -> None:
    """Let c10 count what every thread allocates and frees, from here on (c10/core/CPUAllocator.h)."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An allocation, or a free where size_bytes is negative, by a thread that the profiler follows.

    counted_bytes: c10's count of all threads just after it; None of a mapped file, which c10 does not count.
    operation: the innermost operation around it.
    """

    time_ns: int
    address: int
    size_bytes: int
    counted_bytes: int | None
    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A phase begins; step is the optimizer step that it belongs to."""

    time_ns: int
    phase: Phase
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Blocks of one size that one operation asked for."""

    operation: str
    size_bytes: int
    count: int


@dataclass(slots=True, kw_only=True)
class StretchMemory:
    """What was allocated from the beginning of one phase to that of the next.

    late_bytes: what the threads of gloo freed only while the beginning was waited at: memory of collectives that were
        over before the phase began. None of it is in the other numbers.
    mapped_bytes: files mapped as tensors at the peak; they are part of it.
    freed_elsewhere_bytes: freed meanwhile by threads that the profiler does not follow, which are gloo's.
    largest: what the peak consisted of, the most first, as far as the profiler saw it. A block that gloo's threads
        freed stays in it until its address is used again.
    """

    phase: Phase
    step: int
    begin_bytes: int
    peak_bytes: int = 0
    end_bytes: int = 0
    late_bytes: int = 0
    mapped_bytes: int = 0
    freed_elsewhere_bytes: int = 0
    largest: list[Blocks] = field(default_factory=list)


class CpuRecorder:
    """Records one part of a job. The phases in it are told by begin().

    settle_s: how long to wait at the beginning of a phase for the threads of gloo to free what they still hold.
    """

    def __init__(self, *, settle_s: float = 0.0) -> None:
        self._settle_s = settle_s
        self._profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )
        self._profiler.start()

    def begin(self, phase: Phase, step: int) -> None:
        """A phase begins."""
        self._mark(phase, step)
        if self._settle_s:
            time.sleep(self._settle_s)
            self._mark(phase, step)

    def _mark(self, phase: Phase, step: int) -> None:
        """The tensor makes an event that tells c10's count here."""
        with torch.profiler.record_function(f"{MARK}{phase.value}/{step}"):
            torch.empty(1, dtype=torch.uint8)

    def finish(self) -> list[Change | Beginning]:
        """Stop recording. What happened, in order of time."""
        self._profiler.stop()
        profiler: Any = self._profiler.profiler
        events = profiler.kineto_results.experimental_event_tree()
        return sorted(_entries(events, ""), key=lambda entry: entry.time_ns)


def _entries(events: Iterable[_ProfilerEvent], operation: str) -> Iterator[Change | Beginning]:
    for event in events:
        if event.tag == _EventType.Allocation:
            if event.extra_fields.device.type == "cpu":  # type: ignore[union-attr]
                yield _change(event, operation)
            continue
        if event.name.startswith(MARK):
            phase, _, step = event.name.removeprefix(MARK).rpartition("/")
            yield Beginning(time_ns=event.start_time_ns, phase=Phase(phase), step=int(step))
        yield from _entries(event.children, event.name)


def _change(event: _ProfilerEvent, operation: str) -> Change:
    fields: Any = event.extra_fields
    # c10's count after an allocation is at least its size; of a mapped file the event says 0 (ATen/MapAllocator.cpp).
    is_mapped = fields.total_allocated == 0
    return Change(
        time_ns=event.start_time_ns,
        address=fields.ptr,
        size_bytes=fields.alloc_size,
        counted_bytes=None if is_mapped else fields.total_allocated,
        operation=operation,
    )


class Levels:
    """Follows the recordings of a rank, one after the other."""

    def __init__(self) -> None:
        self._alive: dict[int, Change] = {}
        self._mapped: dict[int, int] = {}

    def follow(self, entries: Iterable[Change | Beginning]) -> list[StretchMemory]:
        """The memory of each stretch of one recording. What comes before the first beginning of a phase is left out."""
        stretches: list[StretchMemory] = []
        begun: Beginning | None = None
        counted: int | None = None
        at_peak: tuple[Change, ...] = ()
        for entry in entries:
            if isinstance(entry, Beginning):
                begun = entry
                continue
            before, counted = counted, self._take(entry, counted)
            level = counted + self._mapped_bytes
            if stretches and before is not None and entry.counted_bytes is not None:
                stretches[-1].freed_elsewhere_bytes += before + entry.size_bytes - counted
            if begun is not None:  # the mark's own tensor
                late = 0
                if stretches and (stretches[-1].phase, stretches[-1].step) == (begun.phase, begun.step):
                    late = stretches.pop().begin_bytes - level
                if stretches:
                    stretches[-1].largest = stretches[-1].largest or _largest(at_peak)
                stretches.append(StretchMemory(phase=begun.phase, step=begun.step, begin_bytes=level, late_bytes=late))
                begun = None
            if not stretches:
                continue
            stretch = stretches[-1]
            stretch.end_bytes = level
            if level > stretch.peak_bytes:
                stretch.peak_bytes, stretch.mapped_bytes = level, self._mapped_bytes
                at_peak = tuple(self._alive.values())
        if stretches:
            stretches[-1].largest = _largest(at_peak)
        return stretches

    @property
    def _mapped_bytes(self) -> int:
        return sum(self._mapped.values())

    def _take(self, change: Change, counted: int | None) -> int:
        """Note the block that came or went; c10's count after it."""
        if change.size_bytes > 0:
            self._alive[change.address] = change
        else:
            self._alive.pop(change.address, None)
        if change.counted_bytes is not None:
            return change.counted_bytes
        if change.size_bytes > 0:
            self._mapped[change.address] = change.size_bytes
        elif self._mapped.pop(change.address, None) is None:
            return 0  # no mapped file: the last of the blocks that c10 counts has gone
        return counted or 0


def _largest(alive: Iterable[Change]) -> list[Blocks]:
    counts = Counter((change.operation, change.size_bytes) for change in alive)
    found = [Blocks(operation=name, size_bytes=size, count=count) for (name, size), count in counts.items()]
    return sorted(found, key=lambda blocks: -blocks.size_bytes * blocks.count)[:NUM_LARGEST]
