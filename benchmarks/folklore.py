"""What people say about memory, beside what the planner says: `python benchmarks/folklore.py [--part ablation]`.

Every saying stands with its plan, and below it a line that says where the difference is, computed from the plan's own
terms. A saying that leaves out what decides (how long the sequences are, which card) is planned with what it does say;
what had to be assumed is written above its table. benchmarks/results/folklore.txt is its recorded output.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console
from sayings.ablation import ablation
from sayings.printing import LINE_WIDTH
from sayings.rules import rules
from sayings.usual import usual

PARTS: dict[str, Callable[[Console], None]] = {"ablation": ablation, "table": usual, "rules": rules}


def main() -> None:
    """Print all parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--part", choices=tuple(PARTS), help="only this one")
    part = parser.parse_args().part
    console = Console(width=LINE_WIDTH, highlight=False)
    for name in PARTS if part is None else (part,):
        PARTS[name](console)


if __name__ == "__main__":
    main()
