"""Where people read: a rich console on stderr. A terminal gets colour and wrapping; a pipe gets whole, plain lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Wider than any line we print, so that nothing is wrapped or cut where nobody looks at a screen.
PIPE_COLUMNS = 100_000


def make_console(file: IO[str] | None = None) -> Console:
    """The console that every table is printed on; stderr unless told otherwise."""
    return Console(file=file or sys.stderr, highlight=False, markup=False, emoji=False)


def is_live(console: Console) -> bool:
    """Whether lines can be redrawn: a terminal that understands cursor movement."""
    return console.is_terminal and not console.is_dumb_terminal


def draws_blocks(console: Console) -> bool:
    """Whether bars may be drawn with block characters; elsewhere they are ASCII."""
    return console.is_terminal and console.encoding.startswith("utf")


def show(console: Console, *renderables: RenderableType) -> None:
    """Print each, one below the other; in a pipe unwrapped and without trailing spaces."""
    for renderable in renderables:
        if console.is_terminal:
            console.print(renderable)
            continue
        options = console.options.update(width=PIPE_COLUMNS, no_wrap=False)
        for line in console.render_lines(renderable, options, pad=False):
            plain = "".join(segment.text for segment in line).rstrip()
            console.file.write(plain + "\n")
    if not console.is_terminal:
        console.file.flush()


def heading(text: str, detail: str = "") -> Text:
    """A bold line with a blank one above it."""
    return Text.assemble("\n", (text, "bold"), (f"  {detail}" if detail else "", "dim"))


def columns(kinds: str, titles: Sequence[str] = ()) -> Table:
    """A table without lines. One letter a column: 'l' left, 'r' right, both whole; 'w' left, wrapping in a terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(titles), header_style="dim")
    for kind, title in zip(kinds, titles or [""] * len(kinds), strict=True):
        table.add_column(Text(title), justify="right" if kind == "r" else "left", no_wrap=kind != "w", overflow="fold")
    return table


def indented(renderable: RenderableType) -> Padding:
    """Two spaces to the right, as everything below a heading stands."""
    return Padding.indent(renderable, 2)
