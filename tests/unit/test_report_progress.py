"""The progress display: plain lines in a pipe, and on a real terminal something that is drawn and wiped away."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.report.console import make_console
from launcher.report.progress import ProgressView, progress_bar, remaining
from launcher.runs.records import Event
from tests.report_fixtures import eval_metrics, train_metrics

ROOT = Path(__file__).parents[2]
Golden = Callable[[str, str], None]

# Draws a short run on whatever stderr is.
DRAW = """
from launcher.report.console import make_console
from launcher.report.progress import ProgressView
from tests.report_fixtures import eval_metrics, train_metrics
from tests.unit.test_report_progress import event

with ProgressView(make_console(), clock=lambda: 1010.0) as view:
    view.update(events=[event("load model", 990.0)], metrics=[])
    view.update(events=[event("train", 999.0)], metrics=[eval_metrics(0, 3.0)])
    for step in range(1, 6):
        view.update(events=[], metrics=[train_metrics(step)])
    if FAIL:
        raise SystemExit(7)
"""


def event(stage: str, time_s: float, detail: str = "") -> Event:
    return Event(time_s=time_s, source="job", attempt=1, stage=stage, detail=detail)


def on_a_terminal(code: str, *, columns: int = 100) -> tuple[int, str]:
    """Run Python code with its stderr on a pseudo-terminal; its exit code and all that it drew."""
    leader, follower = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stderr=follower, stdin=follower)
    os.close(follower)
    drawn = b""
    try:
        while select.select([leader], [], [], 30)[0]:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # Linux says EIO when the last writer has gone
                break
            if not chunk:
                break
            drawn += chunk
        return process.wait(timeout=30), drawn.decode()
    finally:
        process.kill()
        process.wait()
        os.close(leader)


def test_plain_lines_in_a_pipe(golden: Golden) -> None:
    out = io.StringIO()
    with ProgressView(make_console(out), clock=lambda: 1045.0) as view:
        view.update(events=[event("start ranks", 990.0, "torchrun, 2 ranks")], metrics=[])
        view.update(events=[event("load model", 993.5), event("train", 999.0)], metrics=[eval_metrics(0, 3.0)])
        for step in range(1, 13):
            view.update(events=[], metrics=[train_metrics(step)])
        view.update(events=[event("checkpoint", 1024.2, "checkpoint-12")], metrics=[])
        for step in range(13, 21):
            view.update(events=[], metrics=[train_metrics(step)])
        view.update(events=[event("save", 1041.0), event("end", 1043.0, "finished")], metrics=[eval_metrics(20, 1.2)])
    golden("report/progress.txt", out.getvalue())


@pytest.mark.parametrize("fails", [False, True])
def test_a_terminal_is_drawn_on_and_left_clean(fails: bool) -> None:
    code, drawn = on_a_terminal(f"FAIL = {fails}\n" + DRAW)
    assert code == (7 if fails else 0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "5/20 steps" in plain
    assert "loss 2.3213  32.00 samples/s  12,345 tokens/s  eval loss 3.0000" in plain
    # The cursor was hidden and is shown again, by the last thing that was sent but the wiping of the live lines.
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1
    after = drawn.rpartition("\x1b[?25h")[2]
    assert "steps" not in after
    # Two live lines, each moved up to and erased.
    assert after.count("\x1b[2K") == 2


def test_no_line_is_wider_than_the_terminal() -> None:
    _, drawn = on_a_terminal("FAIL = False\n" + DRAW, columns=80)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "\n").split("\n")
    assert max(len(line) for line in lines) <= 80


def test_a_closed_pipe_does_not_stop_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    with ProgressView(make_console(Gone())) as view:
        view.update(events=[event("load model", 1.0), event("train", 2.0)], metrics=[train_metrics(1)])
        view.update(events=[event("save", 3.0)], metrics=[])


def test_remaining_is_the_mean_pace() -> None:
    assert remaining(train_metrics(1), train_metrics(1)) is None
    assert remaining(train_metrics(1), train_metrics(5)) == 30.0


@pytest.mark.parametrize(("step", "done"), [(0, 0), (1, 2), (10, 15), (20, 30)])
def test_progress_bar(step: int, done: int) -> None:
    assert progress_bar(step, 20, blocks=False).plain == f"[{'#' * done}{'.' * (30 - done)}]"
