"""The embedded instruction set: enough rows, clean, the same whenever they are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import stdlib_data
from launcher.datafile import check_file


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return stdlib_data.make_rows()


def test_hundreds_of_distinct_rows(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 600
    assert len({row["instruction"] for row in rows}) == len(rows)
    assert len({row["output"] for row in rows}) == len(rows)
    first_words = {row["instruction"].split("`")[0] for row in rows}
    assert len(first_words) >= 10  # several wordings


def test_answers_are_short_whole_sentences(rows: list[dict[str, str]]) -> None:
    for row in rows:
        answer = row["output"]
        assert stdlib_data.MIN_ANSWER_CHARACTERS <= len(answer) <= stdlib_data.MAX_ANSWER_CHARACTERS
        assert answer[0].isupper()
        assert answer.endswith((".", "!", "?"))
        assert not answer.endswith(("e.g.", "i.e."))
        assert "\n" not in answer
        assert ">>>" not in answer


def test_known_answers(rows: list[dict[str, str]]) -> None:
    answers = {row["instruction"].split("`")[1]: row["output"] for row in rows if "`" in row["instruction"]}
    assert answers["str.strip"] == "Return a copy of the string with leading and trailing whitespace removed."
    assert answers["heapq.heapify"] == "Transform list into a heap, in-place, in O(len(heap)) time."
    assert answers["if"] == 'The "if" statement is used for conditional execution.'


def test_sentences() -> None:
    text = """call(x)

    It waits, e.g. For an event. Then it returns! The following
    happens: nothing.

    Second paragraph."""
    assert stdlib_data.first_sentences(text) == "It waits, e.g. For an event. Then it returns!"
    assert stdlib_data.first_sentences("Too short.") == ""
    assert stdlib_data.first_sentences("A sentence that has no end whatsoever") == ""
    assert stdlib_data.first_sentences("A first sentence. " + "x" * 400 + ".") == ""
    long = "This sentence is long enough. " * 20
    assert len(stdlib_data.first_sentences(long)) == 10 * 30 - 1


def test_the_same_whatever_has_been_imported(tmp_path: Path) -> None:
    importing = "import sys, torch; from pathlib import Path; from jobs import stdlib_data"
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for seed, file in enumerate(files):
        code = f"{importing if seed else importing.replace(', torch', '')}; stdlib_data.build(Path(sys.argv[1]))"
        env = {**os.environ, "PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", code, str(file)], env=env, timeout=60, check=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert check_file(files[0]) == []


def test_written_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITLAUNCH_CACHE", str(tmp_path))
    file = stdlib_data.data_file()
    written = file.stat().st_mtime_ns
    assert file.parent == tmp_path / "data"
    assert stdlib_data.data_file() == file
    assert file.stat().st_mtime_ns == written
    assert json.loads(file.read_text().splitlines()[0])["input"] == ""
