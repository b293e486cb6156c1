"""The trace file: what one rank of a job asks of its device's allocator, in order, and in which phase.

jobs.trace writes it (with torch), launcher.planner reads it (without). It holds what was recorded and nothing that can
be computed from that: peaks, breakdowns and what the caching allocator makes of the stream are the reader's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

import msgspec

# Raised whenever a file of before can no longer be read or means something else.
FORMAT_VERSION = 1


class TraceFormatError(ValueError):
    """The file is no trace, or one of another version of the format."""


class Kind(IntEnum):
    """What happened."""

    ALLOCATE = 0
    FREE = 1
    WORKSPACE = 2
    """Allocated and freed within one operation: a kernel's scratch space."""
    EMPTY_CACHE = 3
    """torch.cuda.empty_cache(): whole free segments go back to the driver."""
    MARK = 4
    """A phase begins; it ends where the next one begins."""


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event of the stream.

    block: the storage, numbered by the tracer. After its FREE the same number may be allocated again (a storage that
        was resized); a WORKSPACE and an EMPTY_CACHE have 0.
    size_bytes: what was asked for, unrounded; a FREE repeats its block's. Storages of 0 bytes have no events.
    stream: the stream current at the allocation, 0 the default one. A block belongs to its stream's pool until freed.
    label: into Trace.labels; of a MARK, into Trace.marks.
    """

    kind: Kind
    block: int = 0
    size_bytes: int = 0
    stream: int = 0
    label: int = 0


class Label(msgspec.Struct, frozen=True, array_like=True):
    """Who asked for a block, and what it turned out to be.

    operation: the operation (aten::mm) or, for what exists before the first operation, the tensor's own name.
    category: a launcher.planner.types.TermKind value.
    """

    operation: str
    category: str


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The beginning of a phase.

    phase: a launcher.planner.types.Phase value.
    step: the optimizer step that it belongs to, counted from 1; 0 before the first.
    """

    phase: str
    step: int


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank of a job does to memory.

    device: "cuda" or "cpu"; `events` are those of this device.
    host_events: the same for the host's memory where device is "cuda" (offloaded states, pinned buffers), with the
        same marks; the stream is 0 for pageable memory and 1 for pinned.
    num_steps: optimizer steps recorded.
    versions: of each package that decides the stream.
    assumptions: what the tracer answered or left out by itself, a sentence each (a value asked by .item(), padding).
    wall_s, peak_rss_bytes: what the recording cost.
    """

    format_version: int = FORMAT_VERSION
    device: str
    rank: int
    world_size: int
    num_steps: int
    labels: tuple[Label, ...]
    marks: tuple[Mark, ...]
    events: list[Event]
    host_events: list[Event] = []
    versions: Mapping[str, str] = {}
    assumptions: tuple[str, ...] = ()
    wall_s: float = 0.0
    peak_rss_bytes: int = 0


class _Version(msgspec.Struct):
    format_version: int


def encode(trace: Trace) -> bytes:
    """The trace as msgpack."""
    return msgspec.msgpack.encode(trace)


def decode(data: bytes) -> Trace:
    """The trace that `data` holds. Raises TraceFormatError, for another version of the format too."""
    try:
        version = msgspec.msgpack.decode(data, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise TraceFormatError(f"the trace has format {version}, this version reads {FORMAT_VERSION}")
        return msgspec.msgpack.decode(data, type=Trace)
    except msgspec.DecodeError as error:
        raise TraceFormatError(f"not a trace: {error}") from error


def write(trace: Trace, path: Path) -> None:
    """Write the trace in one step: nobody ever reads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(encode(trace))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> Trace:
    """The trace in `path`. Raises OSError where it cannot be read and TraceFormatError where it is none."""
    return decode(path.read_bytes())
