"""The trace file: round trip, and refusal of what is none."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.planner.tracing.events import (
    FORMAT_VERSION,
    Event,
    Kind,
    Label,
    Mark,
    Trace,
    TraceFormatError,
    decode,
    encode,
    read,
    write,
)

TRACE = Trace(
    device="cuda",
    rank=3,
    world_size=8,
    num_steps=2,
    labels=(Label("model.embed_tokens.weight", "weights"), Label("aten::mm", "activations")),
    marks=(Mark("load", 0), Mark("forward", 1)),
    events=[
        Event(Kind.MARK, label=0),
        Event(Kind.ALLOCATE, 1, 70_000_000_000, 0, 0),
        Event(Kind.MARK, label=1),
        Event(Kind.ALLOCATE, 2, 1_000, 7, 1),
        Event(Kind.WORKSPACE, 0, 8_519_680, 0, 1),
        Event(Kind.FREE, 2, 1_000, 7, 1),
        Event(Kind.EMPTY_CACHE),
    ],
    host_events=[Event(Kind.MARK, label=0), Event(Kind.ALLOCATE, 9, 4_096, 1, 0)],
    versions={"torch": "2.13.0"},
    assumptions=("no padding",),
    wall_s=1.5,
    peak_rss_bytes=123,
)

sizes = st.integers(min_value=0, max_value=2**50)
events = st.builds(Event, st.sampled_from(Kind), sizes, sizes, st.integers(0, 9), st.integers(0, 9))


def test_a_trace_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trace.msgpack"
    write(TRACE, path)
    assert read(path) == TRACE
    assert [entry.name for entry in path.parent.iterdir()] == ["trace.msgpack"]


@given(st.lists(events))
def test_any_events_survive(recorded: list[Event]) -> None:
    trace = msgspec.structs.replace(TRACE, events=recorded)
    assert decode(encode(trace)) == trace


def test_another_format_is_refused_by_its_number() -> None:
    newer = encode(msgspec.structs.replace(TRACE, format_version=FORMAT_VERSION + 1))
    with pytest.raises(TraceFormatError, match=rf"^the trace has format {FORMAT_VERSION + 1}, this version reads"):
        decode(newer)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01\x02\x03", encode(TRACE)[:-1]], ids=repr)
def test_what_is_no_trace_is_refused(data: bytes) -> None:
    with pytest.raises(TraceFormatError, match=r"^not a trace: "):
        decode(data)
