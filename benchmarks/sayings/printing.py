"""Paragraphs for a terminal and for a file alike."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

LINE_WIDTH = 118


def heading(console: Console, title: str, detail: str) -> None:
    """A part's title and what it is about."""
    console.print(f"\n{title}", style="bold")
    say(console, detail)


def say(console: Console, text: str) -> None:
    """A paragraph, indented, its further lines more."""
    for number, line in enumerate(_wrapped(text)):
        console.print(("  " if number == 0 else "    ") + line, highlight=False, soft_wrap=True)


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > LINE_WIDTH - 4:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line
