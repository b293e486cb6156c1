"""Reading a recorded history of the real allocator. The histories here are made by hand, in the documented format: no
GPU recorded them; their numbers are those that the allocator's source gives for these requests."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from launcher.planner.allocator.snapshot import Comparison, SnapshotError, as_recording, compare, read_snapshot
from launcher.planner.tracing.events import Event, Kind
from launcher.units import MIB

SIDE_STREAM = 0x55D0


def entry(action: str, addr: int, size: int, stream: int = 0) -> dict[str, Any]:
    """As torch/csrc/cuda/memory_snapshot writes one, with the frames that are of no use here."""
    return {
        "action": action,
        "addr": addr,
        "size": size,
        "stream": stream,
        "time_us": 1_700_000_000_000_000,
        "frames": [{"filename": "train.py", "line": 3, "name": "step"}],
    }


EXPANDABLE = [
    entry("segment_map", 0x7000_0000_0000, 20 * MIB),
    entry("alloc", 0x7000_0000_0000, 15 * MIB),
    entry("segment_map", 0x7000_0140_0000, 20 * MIB),
    entry("alloc", 0x7000_00F0_0000, 25 * MIB - 100),
    entry("segment_map", 0x7100_0000_0000, 2 * MIB, SIDE_STREAM),
    entry("alloc", 0x7100_0000_0000, 1000, SIDE_STREAM),
    entry("free_requested", 0x7000_00F0_0000, 25 * MIB - 100),
    entry("free_completed", 0x7000_00F0_0000, 25 * MIB - 100),
    entry("snapshot", 0, 0),
    entry("segment_unmap", 0x7000_0140_0000, 20 * MIB),
    entry("alloc", 0x7000_00F0_0000, 4 * MIB),
]

FIXED = [
    entry("segment_alloc", 0x7000_0000_0000, 20 * MIB),
    entry("alloc", 0x7000_0000_0000, 3 * MIB),
    entry("segment_alloc", 0x7000_1000_0000, 34 * MIB),
    entry("alloc", 0x7000_1000_0000, 33 * MIB + 5),
    entry("segment_alloc", 0x7000_2000_0000, 2 * MIB),
    entry("alloc", 0x7000_2000_0000, 8),
    entry("free_requested", 0x7000_1000_0000, 33 * MIB + 5),
    entry("free_completed", 0x7000_1000_0000, 33 * MIB + 5),
    entry("free_requested", 0x7000_2000_0000, 8),
    entry("free_completed", 0x7000_2000_0000, 8),
    # The next request ran out of memory: two segments go back, and it is tried again.
    entry("segment_free", 0x7000_1000_0000, 34 * MIB),
    entry("segment_free", 0x7000_2000_0000, 2 * MIB),
    entry("segment_alloc", 0x7000_3000_0000, 64 * MIB),
    entry("alloc", 0x7000_3000_0000, 64 * MIB),
]


def test_a_history_becomes_events_with_what_was_reserved_after_each() -> None:
    recording = as_recording(EXPANDABLE)
    assert recording.expandable
    assert recording.events == (
        Event(Kind.ALLOCATE, 1, 15 * MIB, 0),
        Event(Kind.ALLOCATE, 2, 25 * MIB - 100, 0),
        Event(Kind.ALLOCATE, 3, 1000, 1),
        Event(Kind.FREE, 2, 25 * MIB - 100),
        Event(Kind.EMPTY_CACHE),
        Event(Kind.ALLOCATE, 4, 4 * MIB, 0),
    )
    assert recording.reserved_bytes == (20 * MIB, 40 * MIB, 42 * MIB, 42 * MIB, 22 * MIB, 22 * MIB)
    assert recording.peak_reserved_bytes == 42 * MIB


@pytest.mark.parametrize(("history", "peak_bytes"), [(EXPANDABLE, 42 * MIB), (FIXED, 84 * MIB)])
def test_the_replay_reserves_what_was_recorded(history: list[dict[str, Any]], peak_bytes: int) -> None:
    assert compare(as_recording(history)) == Comparison(
        recorded_peak_reserved_bytes=peak_bytes, replayed_peak_reserved_bytes=peak_bytes, first_difference=None
    )


def test_a_difference_is_found_where_it_begins() -> None:
    history = [*FIXED]
    history[2] = entry("segment_alloc", 0x7000_1000_0000, 40 * MIB)
    assert compare(as_recording(history)) == Comparison(
        recorded_peak_reserved_bytes=90 * MIB, replayed_peak_reserved_bytes=84 * MIB, first_difference=1
    )


def test_a_dumped_file_is_read_by_device(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [FIXED, EXPANDABLE]}))
    assert read_snapshot(path) == as_recording(FIXED)
    assert read_snapshot(path, device=1) == as_recording(EXPANDABLE)
    with pytest.raises(SnapshotError, match=r"^not a snapshot of device 2: IndexError"):
        read_snapshot(path, device=2)


def test_a_file_that_names_code_is_refused_unrun(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
    with pytest.raises(SnapshotError, match=r"^not a snapshot: it names os\.system$"):
        read_snapshot(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({"segments": []})], ids=repr)
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "snapshot.pickle"
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=r"^not a snapshot of device 0: "):
        read_snapshot(path)


def test_a_history_that_begins_late_is_refused() -> None:
    with pytest.raises(SnapshotError, match=r"^entry 1 frees 0x700000f00000, whose allocation is not in the history"):
        as_recording(EXPANDABLE[6:])
    with pytest.raises(SnapshotError, match=r"^entry 0 has an action that is not known here: 'segment_moved'$"):
        as_recording([entry("segment_moved", 0, 0)])
