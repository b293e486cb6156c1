"""What a recorder writes down: the storages that were made, and the events of each device."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from launcher.planner.tracing.events import Event, Kind, Label
from launcher.planner.types import Phase, TermKind


@dataclass(slots=True)
class Block:
    """A storage that is, or was, alive. shape is its first tensor's.

    category: what it turned out to be; made_for: what made it, where that tells what it is for.
    """

    number: int
    size_bytes: int
    stream: int
    operation: str
    shape: tuple[int, ...]
    phase: Phase | None
    category: TermKind | None = None
    made_for: TermKind | None = None


@dataclass(slots=True)
class Stream:
    """The events of one device."""

    events: list[tuple[Kind, int, int, int]] = field(default_factory=list)  # kind, block, bytes, stream; mark: number
    allocated_bytes: int = 0
    peak_bytes: int = 0

    def written(self, label_of: Sequence[int], *, pinned: Set[int] | None = None) -> list[Event]:
        """The events as a trace has them. label_of: each block's; pinned: of the host, which blocks are page-locked,
        and these have a stream of their own."""
        return [
            Event(kind, label=extra)
            if kind is Kind.MARK
            else Event(
                kind,
                0 if kind is Kind.WORKSPACE else number,
                size_bytes,
                extra if pinned is None else int(number in pinned),
                label_of[number],
            )
            for kind, number, size_bytes, extra in self.events
        ]


def labels_of(
    blocks: Sequence[Block], category_of: Callable[[Block], TermKind]
) -> tuple[tuple[Label, ...], tuple[int, ...]]:
    """All labels, and the number of each block's. Block 0 is none."""
    labels: dict[Label, int] = {Label(operation="", category=TermKind.ACTIVATIONS.value): 0}
    of_block = [0]
    for block in blocks[1:]:
        label = Label(operation=block.operation, category=category_of(block).value)
        of_block.append(labels.setdefault(label, len(labels)))
    return tuple(labels), tuple(of_block)
