"""launcher.datafile: what is wrong with a data file is said with its place and the way out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher import datafile
from launcher.datafile import Row, check_file, read_rows

ROW = {"instruction": "Say hello.", "input": "to Ann", "output": "Hello, Ann."}
FORM = '{"instruction": "...", "input": "...", "output": "..."}'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problems(path: Path) -> list[str]:
    return [str(problem) for problem in check_file(path)]


def test_reads_an_array_and_lines_alike(tmp_path: Path) -> None:
    alone = {"instruction": "Say hello.", "output": "Hello."}
    null = {"instruction": "Say hello.", "input": None, "output": "Hello.", "text": "passed over"}
    rows = [ROW, alone, null]
    array = write(tmp_path, "a.json", json.dumps(rows, indent=2))
    lines = write(tmp_path, "a.jsonl", "\ufeff" + "\n\n".join(json.dumps(row) for row in rows))
    expected = [
        Row("Say hello.", "to Ann", "Hello, Ann."),
        Row("Say hello.", "", "Hello."),
        Row("Say hello.", "", "Hello."),
    ]
    assert read_rows(array) == expected
    assert read_rows(lines) == expected
    assert problems(array) == problems(lines) == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "x", "ends in '.csv', not in .json or .jsonl: an array of rows is .json, a row a line is .jsonl"),
        ("a", "x", "has no ending, not in .json or .jsonl: an array of rows is .json, a row a line is .jsonl"),
        ("a.json", "", f"has no rows: write rows like {FORM}"),
        ("a.json", "[]", f"has no rows: write rows like {FORM}"),
        ("a.jsonl", "\n\n", f"has no rows: write rows like {FORM}"),
        ("a.json", '[{"instruction": "a",\n "output" "b"}]', "line 2 is not JSON: expected ':'"),
        ("a.json", '[{"instruction": "a",\n', "line 1 is not JSON: Input data was truncated"),
        ("a.json", b'[\n\n"\xff"]', "line 3 is not JSON: it is not UTF-8 text"),
        ("a.json", json.dumps(ROW), f"is not an array: write [{FORM}, ...]"),
        (
            "a.json",
            f"{json.dumps(ROW)}\n{json.dumps(ROW)}",
            "line 2 begins a second document: name the file .jsonl if it has a row a line",
        ),
        ("a.json", json.dumps([ROW, 3]), f"row 2 is not an object: write {FORM}"),
        (
            "a.json",
            json.dumps([ROW, {"messages": [], "id": 1}]),
            f"row 2 has no 'instruction': it has id, messages; write {FORM}",
        ),
        ("a.json", json.dumps([{"instruction": "a"}]), f"row 1 has no 'output': it has instruction; write {FORM}"),
        ("a.json", json.dumps([{**ROW, "output": 3}]), "row 1 has an 'output' that is not text: it is of type int"),
        ("a.json", json.dumps([{**ROW, "output": None}]), "row 1 has an 'output' that is not text: it is null"),
        ("a.json", json.dumps([{**ROW, "instruction": " "}]), "row 1 has an empty 'instruction': say what is asked"),
        ("a.jsonl", json.dumps(ROW) + "\n{nope}\n", "line 2 is not JSON: object keys must be strings"),
        ("a.jsonl", json.dumps(ROW) + "\n\n[1]\n", f"line 3 is not an object: write {FORM}"),
        ("a.jsonl", "[\n", "line 1 is not a whole row: name the file .json if it is one array of rows"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    path = write(tmp_path, name, content)
    assert problems(path) == [expected]
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {expected}')}$"):
        read_rows(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    assert problems(tmp_path / "none.json") == ["does not exist: name an existing file"]
    assert problems(tmp_path / "folder.json") == ["is not a file: name a file"]


def test_five_problems_at_most(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "1\n" * 8)
    assert problems(path) == [f"line {number} is not an object: write {FORM}" for number in range(1, 6)]


def test_looks_no_longer_than_its_budget(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", f"{json.dumps(ROW)}\n1\n")
    assert check_file(path, budget_s=-1) == []  # the deadline is past after the first row, which is good
    assert len(check_file(path)) == 1


def test_head_of_a_large_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datafile, "WHOLE_ARRAY_BYTES", 0)
    rows = json.dumps([ROW] * 20, indent=1)
    monkeypatch.setattr(datafile, "HEAD_CHARACTERS", len(rows) // 2)
    assert problems(write(tmp_path, "good.json", rows)) == []
    bad = json.dumps([ROW, {"instruction": "a"}, *[ROW] * 20])
    assert problems(write(tmp_path, "bad.json", bad)) == [f"row 2 has no 'output': it has instruction; write {FORM}"]
    assert problems(write(tmp_path, "object.json", "{}")) == [f"is not an array: write [{FORM}, ...]"]
    assert problems(write(tmp_path, "broken.json", "[nope")) == ["line 1 is not JSON: Expecting value"]
