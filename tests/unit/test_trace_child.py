"""The process that traces: what it says is handed on, how it fails is told, and it never outlives its parent's will."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from launcher.planner.tracing.child import reason, supervise
from launcher.planner.tracing.failure import TraceFailed

TWO_LINES = "print('load'); print('wrap')"
# A child with a child of its own, which a kill of the first alone would leave behind.
NEVER_ENDS = (
    "import subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print(p.pid, flush=True); time.sleep(60)"
)


def run(code: str, tmp_path: Path, said: list[str], timeout_s: float = 30) -> None:
    argv = (sys.executable, "-c", code)
    supervise(argv, errors=tmp_path / "stderr", environ=os.environ, progress=said.append, timeout_s=timeout_s)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; an orphan that nobody waits for yet counts as ended."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_what_the_child_says_is_handed_on(tmp_path: Path) -> None:
    said: list[str] = []
    run(TWO_LINES, tmp_path, said)
    assert said == ["load", "wrap"]


def test_a_failure_is_told_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(TraceFailed) as failed:
        run("import sys; sys.stderr.write('no such kernel\\n'); sys.exit(3)", tmp_path, [])
    assert str(failed.value) == "the tracer ended with exit code 3\nno such kernel"


def test_only_the_last_lines_of_a_traceback_are_told() -> None:
    errors = "\n".join(f"line {number}" for number in range(40))
    assert reason(errors, -9).splitlines() == [
        "the tracer ended with signal 9",
        *(f"line {number}" for number in range(28, 40)),
    ]


def test_a_child_that_takes_too_long_is_killed_with_all_it_started(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(TraceFailed, match="was not done after 2 s"):
        run(NEVER_ENDS, tmp_path, said, timeout_s=2)
    assert is_gone(int(said[0]))


def test_an_interrupt_kills_the_child_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []

    def interrupt(text: str) -> None:
        said.append(text)
        raise KeyboardInterrupt

    argv = (sys.executable, "-c", NEVER_ENDS)
    with pytest.raises(KeyboardInterrupt):
        supervise(argv, errors=tmp_path / "stderr", environ=os.environ, progress=interrupt, timeout_s=30)
    assert is_gone(int(said[0]))
