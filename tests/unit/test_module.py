"""A program of ours in the foreground: its exit code is the command's, and a stop reaches all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.errors import JobFailed
from launcher.targets.module import run_module

SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""
RUN = """
from launcher.cli import run_cli
from launcher.targets import module
import launcher.cli as cli, sys

@cli.cli.command()
def test_module() -> int:
    return module.run_module("sleeper", ())

sys.exit(run_cli(["test-module"]))
"""


@pytest.fixture
def on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules the program started can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("exit_code", [0, 2, 5])
def test_the_exit_code_is_passed_on(on_the_path: Path, exit_code: int) -> None:
    (on_the_path / "ends.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    assert run_module("ends", (str(exit_code),)) == exit_code


def test_death_by_a_signal_is_a_failure(on_the_path: Path) -> None:
    (on_the_path / "dies.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(JobFailed, match=r"^dies was ended by SIGKILL$"):
        run_module("dies", ())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_program_and_its_children(on_the_path: Path, number: signal.Signals) -> None:
    (on_the_path / "sleeper.py").write_text(SLEEPER)
    command = subprocess.Popen([sys.executable, "-c", RUN], cwd=on_the_path, stderr=subprocess.PIPE, text=True)
    try:
        pids = _pids_in(on_the_path / "pids")
        command.send_signal(number)
        _, told = command.communicate(timeout=20)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 130
    assert told.splitlines()[-1] == "error: sleeper was stopped"
    assert [pid for pid in pids if _lives(pid)] == []


def _pids_in(path: Path) -> list[int]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if path.exists() and (words := path.read_text().split()):
            return [int(word) for word in words]
        time.sleep(0.05)
    raise AssertionError("the program never started")


def _lives(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet reaped does not."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True
