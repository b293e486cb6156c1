"""What torch's CPU allocator has handed out, phase by phase, from its own count.

The profiler alone would not do: it sees nothing that was allocated before it started, nor what the threads of gloo
free. c10 can count the allocations and frees of all threads, and its count stands in each of the profiler's events.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._profiler import _EventType, _ProfilerEvent

from launcher.planner.types import Phase

PHASE = "fitlaunch phase "
SETTLE = "fitlaunch settle"
SETTLED = "fitlaunch settled"
NUM_LARGEST = 40


def count_allocations() -> bool:
    """Let c10 count what every thread allocates and frees, from here on (c10/core/CPUAllocator.h, torch 2.13).

    Returns whether it does: a torch that was built otherwise may keep the switch elsewhere.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True
    except (OSError, ValueError):
        return False
    return True


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
class Mark:
    """Something that the rank told the recorder. The change that follows is the mark's own tensor.

    name: a phase with its optimizer step, or one of SETTLE and SETTLED.
    """

    time_ns: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Blocks of one size that one operation asked for."""

    operation: str
    size_bytes: int
    count: int


@dataclass(slots=True, kw_only=True)
class StretchMemory:
    """What was allocated from the beginning of one phase to that of the next.

    late_bytes: the most that the threads of gloo still held of a collective that was over, where they were waited for;
        none of it is in the other numbers.
    freed_elsewhere_bytes: freed meanwhile by threads that the profiler does not follow, which are gloo's.
    mapped_bytes: files mapped as tensors at the peak; they are part of it.
    largest: what the peak consisted of, the most first, as far as the profiler saw it. A block that gloo's threads
        freed stays in it until its address is used again.
    """

    phase: Phase
    step: int
    begin_bytes: int
    peak_bytes: int
    end_bytes: int
    late_bytes: int = 0
    freed_elsewhere_bytes: int = 0
    mapped_bytes: int = 0
    largest: list[Blocks] = field(default_factory=list)


class CpuRecorder:
    """Records one part of a job. The phases in it are told by begin()."""

    def __init__(self) -> None:
        self._profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )
        self._profiler.start()

    def begin(self, phase: Phase, step: int) -> None:
        """A phase begins."""
        _mark(f"{PHASE}{phase.value}/{step}")

    def finish(self) -> list[Change | Mark]:
        """Stop recording. What happened, in order of time."""
        self._profiler.stop()
        profiler: Any = self._profiler.profiler
        events = profiler.kineto_results.experimental_event_tree()
        return sorted(_entries(events, ""), key=lambda entry: entry.time_ns)


def _mark(name: str) -> None:
    """The tensor makes an event, which tells c10's count here."""
    with torch.profiler.record_function(name):
        torch.empty(1, dtype=torch.uint8)


def settle(wait_s: float) -> None:
    """Let the threads of gloo free what they still hold of collectives that are over."""
    _mark(SETTLE)
    time.sleep(wait_s)
    _mark(SETTLED)


@contextmanager
def settling(wait_s: float) -> Iterator[None]:
    """Settle after every collective that is waited for.

    A thread of gloo frees a collective's tensors some time after it has told that the collective is over. How much of
    that falls into what comes next depends on how busy the host is.
    """
    wait = dist.Work.wait

    def wait_and_settle(work: dist.Work, *args: Any, **kwargs: Any) -> bool:
        done = wait(work, *args, **kwargs)
        settle(wait_s)
        return done

    dist.Work.wait = wait_and_settle  # type: ignore[method-assign]
    try:
        yield
    finally:
        dist.Work.wait = wait  # type: ignore[method-assign]


def _entries(events: Iterable[_ProfilerEvent], operation: str) -> Iterator[Change | Mark]:
    for event in events:
        if event.tag == _EventType.Allocation:
            if event.extra_fields.device.type == "cpu":  # type: ignore[union-attr]
                yield _change(event, operation)
            continue
        if event.name.startswith(PHASE) or event.name in (SETTLE, SETTLED):
            yield Mark(time_ns=event.start_time_ns, name=event.name)
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
        self._counted_bytes: int | None = None
        self._stretches: list[StretchMemory] = []
        self._at_peak: tuple[Change, ...] = ()
        self._unsettled_bytes: int | None = None

    def follow(self, entries: Iterable[Change | Mark]) -> list[StretchMemory]:
        """The memory of each stretch of one recording. What comes before the first beginning of a phase is left out."""
        self._counted_bytes, self._unsettled_bytes, self._stretches = None, None, []
        mark: Mark | None = None
        for entry in entries:
            if isinstance(entry, Mark):
                mark = entry
                continue
            elsewhere = self._take(entry)
            if self._stretches:
                self._stretches[-1].freed_elsewhere_bytes += elsewhere
            if mark is not None:
                self._pass(mark)
                mark = None
            if self._stretches:
                self._note_level()
        self._close_stretch()
        return self._stretches

    @property
    def _level(self) -> int:
        return (self._counted_bytes or 0) + sum(self._mapped.values())

    def _take(self, change: Change) -> int:
        """Note a block that came or went. Returns the bytes that other threads freed since the change before."""
        if change.size_bytes > 0:
            self._alive[change.address] = change
        else:
            self._alive.pop(change.address, None)
        counted = change.counted_bytes
        if counted is None and change.size_bytes > 0:
            self._mapped[change.address] = change.size_bytes
            return 0
        if counted is None and self._mapped.pop(change.address, None) is not None:
            return 0
        before, self._counted_bytes = self._counted_bytes, counted or 0
        return 0 if before is None else before + change.size_bytes - self._counted_bytes

    def _pass(self, mark: Mark) -> None:
        """The level just after a mark."""
        if mark.name == SETTLE:
            self._unsettled_bytes = self._level
        elif mark.name == SETTLED:
            if self._stretches and self._unsettled_bytes is not None:
                stretch = self._stretches[-1]
                stretch.late_bytes = max(stretch.late_bytes, self._unsettled_bytes - self._level)
            self._unsettled_bytes = None
        else:
            self._close_stretch()
            phase, _, step = mark.name.removeprefix(PHASE).rpartition("/")
            self._stretches.append(
                StretchMemory(
                    phase=Phase(phase), step=int(step), begin_bytes=self._level, peak_bytes=0, end_bytes=self._level
                )
            )

    def _note_level(self) -> None:
        """The stretch's peak, unless gloo is being waited for."""
        stretch, level = self._stretches[-1], self._level
        stretch.end_bytes = level
        if self._unsettled_bytes is None and level > stretch.peak_bytes:
            stretch.peak_bytes, stretch.mapped_bytes = level, sum(self._mapped.values())
            self._at_peak = tuple(self._alive.values())

    def _close_stretch(self) -> None:
        if self._stretches:
            self._stretches[-1].largest = _largest(self._at_peak)


def _largest(alive: Iterable[Change]) -> list[Blocks]:
    counts = Counter((change.operation, change.size_bytes) for change in alive)
    found = [Blocks(operation=name, size_bytes=size, count=count) for (name, size), count in counts.items()]
    return sorted(found, key=lambda blocks: -blocks.size_bytes * blocks.count)[:NUM_LARGEST]
