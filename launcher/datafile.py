"""Instruction data in alpaca form: read a file, and say what is wrong with it before anything is started.

A row is an object with 'instruction', 'output' and optionally 'input', all text. A .json file is one array of
rows, a .jsonl file has one row a line. The launcher checks a file here, and the job reads it here, so that
what the launcher accepted is what the ranks understand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

SUFFIXES = (".json", ".jsonl")
MAX_PROBLEMS = 5
# A JSON array up to this size is parsed whole by the check (about 0.1 s); of a larger one the beginning is.
WHOLE_ARRAY_BYTES = 32 * 1024**2
HEAD_CHARACTERS = 1024**2

_EXAMPLE = '{"instruction": "...", "input": "...", "output": "..."}'
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction and its answer. input is '' where the instruction stands alone."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataProblem:
    """One thing wrong with a data file: where ('line 3', 'row 12', '' for the file), the rule, and the way out."""

    place: str
    rule: str
    way_out: str

    def __str__(self) -> str:
        head = f"{self.place} {self.rule}" if self.place else self.rule
        return f"{head}: {self.way_out}" if self.way_out else head


def check_file(path: Path, *, budget_s: float = 0.25) -> list[DataProblem]:
    """What is wrong with a data file, at most five things; rows are looked at until `budget_s` is spent.

    A file that did not change is looked at once: a sweep asks for every cell.
    """
    problem = _check_path(path)
    if problem:
        return [problem]
    found = path.stat()
    return list(_check_rows(path, budget_s, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=8)
def _check_rows(path: Path, budget_s: float, _size_bytes: int, _changed_at_ns: int) -> tuple[DataProblem, ...]:
    deadline = time.monotonic() + budget_s
    problems: list[DataProblem] = []
    num_rows = 0
    for item in _peek(path):
        if isinstance(item, DataProblem):
            problems.append(item)
        else:
            num_rows += 1
        if len(problems) == MAX_PROBLEMS or time.monotonic() > deadline:
            break
    return tuple(problems if problems or num_rows else [_no_rows()])


def read_rows(path: Path) -> list[Row]:
    """Every row of a file. ValueError names the file and up to five of its problems."""
    problem = _check_path(path)
    items = iter([problem]) if problem else _scan(path)
    rows: list[Row] = []
    problems: list[DataProblem] = []
    for item in items:
        if isinstance(item, Row):
            rows.append(item)
        else:
            problems.append(item)
        if len(problems) == MAX_PROBLEMS:
            break
    if not rows and not problems:
        problems.append(_no_rows())
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
    return rows


def _check_path(path: Path) -> DataProblem | None:
    def wrong(rule: str, way_out: str) -> DataProblem:
        return DataProblem(place="", rule=rule, way_out=way_out)

    if path.suffix not in SUFFIXES:
        found = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        return wrong(f"{found}, not in .json or .jsonl", "an array of rows is .json, a row a line is .jsonl")
    if not path.exists():
        return wrong("does not exist", "name an existing file")
    if not path.is_file():
        return wrong("is not a file", "name a file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        return wrong("cannot be read", error.strerror or str(error))
    return _no_rows() if empty else None


def _peek(path: Path) -> Iterator[Row | DataProblem]:
    if path.suffix == ".jsonl" or path.stat().st_size <= WHOLE_ARRAY_BYTES:
        return _scan(path)
    return _scan_head(path)


def _scan(path: Path) -> Iterator[Row | DataProblem]:
    return _scan_lines(path) if path.suffix == ".jsonl" else _scan_array(path)


def _scan_lines(path: Path) -> Iterator[Row | DataProblem]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(_BOM) if number == 1 else line
            if not text.strip():
                continue
            place = f"line {number}"
            try:
                value = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                yield _broken_line(place, text, error)
                continue
            yield _to_row(value, place)


def _broken_line(place: str, text: bytes, error: Exception) -> DataProblem:
    if text.strip() in (b"[", b"{"):
        return DataProblem(
            place=place, rule="is not a whole row", way_out="name the file .json if it is one array of rows"
        )
    return DataProblem(place=place, rule="is not JSON", way_out=_reason(error))


def _scan_array(path: Path) -> Iterator[Row | DataProblem]:
    content = path.read_bytes().removeprefix(_BOM)
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        yield _broken_array(content, error)
        return
    if not isinstance(value, list):
        yield DataProblem(place="", rule="is not an array", way_out=f"write [{_EXAMPLE}, ...]")
        return
    for number, item in enumerate(value, start=1):
        yield _to_row(item, f"row {number}")


def _broken_array(content: bytes, error: Exception) -> DataProblem:
    line = _line_of(content, error)
    if content.lstrip().startswith(b"{") and "trailing characters" in str(error):
        return DataProblem(
            place=f"line {line}", rule="begins a second document", way_out="name the file .jsonl if it has a row a line"
        )
    return DataProblem(place=f"line {line}", rule="is not JSON", way_out=_reason(error))


def _line_of(content: bytes, error: Exception) -> int:
    """The line of a decoding error: msgspec gives the offset in bytes, or says that the input was truncated."""
    _, found, tail = str(error).rpartition("(byte ")
    end = int(tail.rstrip(")")) if found else len(content.rstrip())
    if isinstance(error, UnicodeDecodeError):
        end = _first_undecodable(content)
    return content.count(b"\n", 0, end) + 1


def _first_undecodable(content: bytes) -> int:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(content)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return str(error).removeprefix("JSON is malformed: ").partition(" (byte")[0]


def _scan_head(path: Path) -> Iterator[Row | DataProblem]:
    """The rows in the first characters of a large array; what breaks off at their end is not judged."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.read(HEAD_CHARACTERS)
    position = _skip(head, 0, " \t\r\n")
    if head[position : position + 1] != "[":
        yield DataProblem(place="", rule="is not an array", way_out=f"write [{_EXAMPLE}, ...]")
        return
    decoder = json.JSONDecoder()
    number = 0
    while (position := _skip(head, position + 1, " \t\r\n,")) < len(head):
        number += 1
        try:
            value, position = decoder.raw_decode(head, position)
        except json.JSONDecodeError as error:
            if number == 1:
                yield DataProblem(place=f"line {error.lineno}", rule="is not JSON", way_out=error.msg)
            return
        yield _to_row(value, f"row {number}")


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _to_row(value: Any, place: str) -> Row | DataProblem:
    if not isinstance(value, dict):
        return DataProblem(place=place, rule="is not an object", way_out=f"write {_EXAMPLE}")
    for key in ("instruction", "output"):
        if key not in value:
            names = ", ".join(sorted(value)[:6]) or "nothing"
            return DataProblem(place=place, rule=f"has no '{key}'", way_out=f"it has {names}; write {_EXAMPLE}")
    given = value.get("input")
    texts: dict[str, Any] = {**value, "input": "" if given is None else given}
    for key in ("instruction", "input", "output"):
        if not isinstance(texts[key], str):
            kind = "null" if texts[key] is None else f"of type {type(texts[key]).__name__}"
            return DataProblem(place=place, rule=f"has an '{key}' that is not text", way_out=f"it is {kind}")
    if not texts["instruction"].strip():
        return DataProblem(place=place, rule="has an empty 'instruction'", way_out="say what is asked")
    return Row(texts["instruction"], texts["input"], texts["output"])


def _no_rows() -> DataProblem:
    return DataProblem(place="", rule="has no rows", way_out=f"write rows like {_EXAMPLE}")
