"""A recorded history of the real allocator, as events: to hold the replay against what a GPU really did.

The file is torch.cuda.memory._dump_snapshot()'s, after torch.cuda.memory._record_memory_history() before the first
allocation of the process; its format is in torch/cuda/memory.py, _snapshot (torch 2.13).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.planner.allocator.pool import Block
from launcher.planner.allocator.replay import new_allocator
from launcher.planner.tracing.events import Event, Kind

# What moves memory between the driver and the allocator, and which way.
RESERVED = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
EXPANDABLE = frozenset({"segment_map", "segment_unmap"})
IGNORED = frozenset({"free_requested", "snapshot", "oom", "user_defined"})


class SnapshotError(ValueError):
    """The file is no snapshot, or one that cannot be replayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The history of one device. reserved_bytes: what was reserved after each event, as long as `events`."""

    expandable: bool
    events: tuple[Event, ...]
    reserved_bytes: tuple[int, ...]

    @property
    def peak_reserved_bytes(self) -> int:
        return max(self.reserved_bytes, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The replay beside the recording. first_difference: the event after which they had not reserved the same."""

    recorded_peak_reserved_bytes: int
    replayed_peak_reserved_bytes: int
    first_difference: int | None


class _PlainData(pickle.Unpickler):
    """Reads what a snapshot consists of, dicts, lists and numbers, and runs no code that a file might name."""

    def find_class(self, module: str, name: str) -> Any:
        raise SnapshotError(f"not a snapshot: it names {module}.{name}")


def read_snapshot(path: Path, device: int = 0) -> Recording:
    """The history of `device` in a file of torch.cuda.memory._dump_snapshot. Raises SnapshotError."""
    with path.open("rb") as file:
        try:
            snapshot = _PlainData(file).load()
            history = snapshot["device_traces"][device]
        except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError) as error:
            raise SnapshotError(f"not a snapshot of device {device}: {error!r}") from error
    return as_recording(history)


def as_recording(history: Iterable[Mapping[str, Any]]) -> Recording:
    """The entries of one device's history, in our events. Raises SnapshotError.

    A block is free when free_completed says so: until then another stream may still use it. Memory given back to the
    driver, by torch.cuda.empty_cache() or because an allocation ran out of it, is an EMPTY_CACHE; memory taken from
    it belongs to the allocation that follows.
    """
    reader = _Reader()
    for number, entry in enumerate(history):
        reader.read(number, entry)
    return Recording(
        expandable=reader.expandable, events=tuple(reader.events), reserved_bytes=tuple(reader.reserved_bytes)
    )


def compare(recording: Recording) -> Comparison:
    """Replay a recording, without a limit: what ran out of memory there is already told by its EMPTY_CACHE."""
    allocator = new_allocator(expandable=recording.expandable)
    live: dict[int, Block] = {}
    first_difference = None
    for number, (event, reserved_bytes) in enumerate(zip(recording.events, recording.reserved_bytes, strict=True)):
        if event.kind is Kind.ALLOCATE:
            block = allocator.allocate(event.size_bytes, event.stream)
            assert block is not None
            live[event.block] = block
        elif event.kind is Kind.FREE:
            allocator.free(live.pop(event.block))
        else:
            allocator.empty_cache()
        if first_difference is None and allocator.reserved_bytes != reserved_bytes:
            first_difference = number
    return Comparison(
        recorded_peak_reserved_bytes=recording.peak_reserved_bytes,
        replayed_peak_reserved_bytes=allocator.peak_reserved_bytes,
        first_difference=first_difference,
    )


class _Reader:
    """The state of reading a history entry by entry."""

    def __init__(self) -> None:
        self.expandable = False
        self.events: list[Event] = []
        self.reserved_bytes: list[int] = []
        self._now_reserved_bytes = 0
        self._blocks: dict[int, int] = {}
        self._streams: dict[int, int] = {0: 0}
        self._num_blocks = 0
        self._releasing = False

    def read(self, number: int, entry: Mapping[str, Any]) -> None:
        """Take in the entry of this number."""
        action, size_bytes = entry["action"], entry.get("size", 0)
        was_releasing, self._releasing = self._releasing, False
        if action in RESERVED:
            self.expandable |= action in EXPANDABLE
            self._now_reserved_bytes += RESERVED[action] * size_bytes
            self._releasing = RESERVED[action] < 0
            if self._releasing and not was_releasing:
                self._add(Event(Kind.EMPTY_CACHE))
            elif self._releasing:
                self.reserved_bytes[-1] = self._now_reserved_bytes
        elif action == "alloc":
            self._num_blocks += 1
            self._blocks[entry["addr"]] = self._num_blocks
            stream = self._streams.setdefault(entry["stream"], len(self._streams))
            self._add(Event(Kind.ALLOCATE, self._num_blocks, size_bytes, stream))
        elif action == "free_completed":
            block = self._blocks.pop(entry["addr"], None)
            if block is None:
                raise SnapshotError(
                    f"entry {number} frees {entry['addr']:#x}, whose allocation is not in the history: record from "
                    "before the first allocation on, without max_entries"
                )
            self._add(Event(Kind.FREE, block, size_bytes))
        elif action not in IGNORED:
            raise SnapshotError(f"entry {number} has an action that is not known here: {action!r}")

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self.reserved_bytes.append(self._now_reserved_bytes)
