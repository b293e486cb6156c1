"""Following files that grow: whole lines, each once."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from launcher.runs.records import EvalMetrics, Event, append_record
from launcher.runs.tail import LineTail, decode_event, decode_metrics, last_lines, read_events, read_metrics
from tests.markers import STEP

EVAL = EvalMetrics(time_s=1.0, attempt=1, step=0, loss=3.5, num_samples=7)
EVENT = Event(time_s=1.0, source="job", attempt=1, stage="load model")

LINE = st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b""))


@given(lines=st.lists(LINE, max_size=20), cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=10))
def test_each_line_comes_exactly_once(tmp_path_factory: object, lines: list[bytes], cuts: list[int]) -> None:
    path = tmp_path_factory.mktemp("tail") / "file"  # type: ignore[attr-defined]
    tail = LineTail(path)
    content = b"".join(line + b"\n" for line in lines)
    read: list[bytes] = []
    written = 0
    for cut in [*sorted(min(cut, len(content)) for cut in cuts), len(content)]:
        with path.open("ab") as file:
            file.write(content[written:cut])
        written = cut
        read += tail.read()
    assert read == lines
    assert tail.read() == []


def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    tail = LineTail.from_end(tmp_path / "file")
    assert tail.read() == []
    (tmp_path / "file").write_text("a\nb")
    assert tail.read() == [b"a"]


def test_from_the_end_on(tmp_path: Path) -> None:
    append_record(tmp_path / "events.jsonl", EVENT)
    tail = LineTail.from_end(tmp_path / "events.jsonl")
    append_record(tmp_path / "events.jsonl", EVENT)
    assert [decode_event(line) for line in tail.read()] == [EVENT]


def test_metrics_are_told_apart_by_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for record in (EVAL, STEP):
        append_record(path, record)
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "step": "three"}\n{"kind": "other"}\n[1]\nnoise\n')
        file.write(msgspec.json.encode(STEP)[:-5])
    assert read_metrics(path) == (EVAL, STEP)


def test_events_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == ()
    append_record(path, EVENT)
    with path.open("ab") as file:
        file.write(b"noise\n")
    assert read_events(path) == (EVENT,)
    assert decode_metrics(b"noise") is None


def test_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_lines(path, 3) == ()
    path.write_bytes(b"first\n" + b"\xff\nmiddle\nlast")
    assert last_lines(path, 2) == ("middle", "last")
    assert last_lines(path, 9) == ("first", "�", "middle", "last")
    assert last_lines(path, 9, window_bytes=8) == ("last",)  # a line cut by the window is left out
