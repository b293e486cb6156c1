"""The README's command blocks: ```sh plan, render and run are commands; a ```text block after one is its output.

`python -m tests.readme` writes the outputs anew.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(sh|text)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of the README; `output` is what the README shows below it, or None."""

    kind: str
    line: str
    output: str | None


def commands(text: str) -> list[Command]:
    """Every marked command, in order. An unmarked ```sh block is an error, but for `make`."""
    found: list[Command] = []
    for language, kind, body in BLOCK.findall(text):
        if language == "text":
            last = found[-1]
            found[-1] = Command(kind=last.kind, line=last.line, output=body)
            continue
        lines = [line.partition("  #")[0].strip() for line in body.splitlines()]
        for line in filter(None, lines):
            assert kind or line.startswith("make "), f"not marked: {line}"
            found.append(Command(kind=kind or "make", line=line, output=None))
    return found


def fill_outputs(text: str, run: Callable[[str], str]) -> str:
    """The README with every ```text block replaced by what the command before it really prints."""
    last = ""

    def replace(match: re.Match[str]) -> str:
        nonlocal last
        language, _, body = match.groups()
        if language == "sh":
            last = body.splitlines()[-1].partition("  #")[0].strip()
            return match.group(0)
        return f"```text\n{run(last).strip()}\n```"

    return BLOCK.sub(replace, text)


def output_of(line: str) -> str:
    """What a command of the README prints for people."""
    words = [sys.executable, *shlex.split(line)[1:]]
    return subprocess.run(words, cwd=README.parent, capture_output=True, text=True, timeout=60, check=False).stderr


if __name__ == "__main__":
    README.write_text(fill_outputs(README.read_text(), output_of))
