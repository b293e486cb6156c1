"""The README's command blocks: ```sh plan, ```sh render and ```sh run are commands; a ```text block after one is its output."""

from __future__ import annotations

import re
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
