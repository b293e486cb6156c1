"""Every command of the README does what it says there; what is shown as output is the output."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import README, Command, commands

ROOT = README.parent
COMMANDS = commands(README.read_text())


def execute(command: Command, runs_dir: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command.line)
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    else:
        words = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    if "launch.py" in command.line:
        words.append(f"runs_dir={runs_dir}")
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ, check=False)


def of_kind(*kinds: str) -> list[object]:
    return [pytest.param(command, id=command.line) for command in COMMANDS if command.kind in kinds]


def test_the_readme_shows_every_kind_of_command() -> None:
    assert {command.kind for command in COMMANDS} >= {"make", "plan", "render", "run"}


@pytest.mark.parametrize("command", of_kind("plan"))
def test_plan(command: Command, tmp_path: Path) -> None:
    done = execute(command, tmp_path)
    assert done.returncode in (0, 3), done.stderr
    assert "mode=plan" in command.line or command.line.startswith("fitlaunch fit ")
    assert list(tmp_path.iterdir()) == []
    if command.output is not None:
        assert done.stderr.strip("\n") == command.output.strip("\n")


@pytest.mark.parametrize("command", of_kind("render"))
def test_render(command: Command, tmp_path: Path) -> None:
    done = execute(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/launch.json"))) == 1


@pytest.mark.distributed
@pytest.mark.parametrize("command", of_kind("run"))
def test_run(command: Command, tmp_path: Path) -> None:
    done = execute(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*/attempts/1/finished.json"))
