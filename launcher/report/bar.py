"""Bars of characters: a share of a whole, and an interval against a card's capacity."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """How many cells of a bar lie where. The first three fill the card; the last two stick out of it."""

    used: int
    uncertain: int
    free: int
    used_beyond: int
    uncertain_beyond: int


def share_cells(part: int, whole: int, width: int) -> int:
    """Cells of `width` that `part` takes of `whole`, rounded; something is never nothing, nor more than all."""
    if part <= 0 or whole <= 0:
        return 0
    return min(width, max(1, round(width * part / whole)))


def capacity_cells(low_bytes: int, high_bytes: int, capacity_bytes: int, width: int) -> Cells:
    """Lay an interval of need on a bar that holds the card, and what does not fit in it to the right of the card.

    A card that is more than full by a byte shows at least one cell outside, and one that holds everything none.
    """
    whole = max(capacity_bytes, high_bytes)
    over = high_bytes > capacity_bytes
    card = min(share_cells(capacity_bytes, whole, width), width - 1) if over else width
    low = share_cells(low_bytes, whole, width)
    low = max(low, card + 1) if low_bytes > capacity_bytes else min(low, card)
    high = width if over else max(low, share_cells(high_bytes, whole, width))
    return Cells(
        used=min(low, card),
        uncertain=min(high, card) - min(low, card),
        free=card - min(high, card),
        used_beyond=max(low - card, 0),
        uncertain_beyond=max(high, card) - max(low, card),
    )


def capacity_bar(cells: Cells, *, blocks: bool, style: str) -> Text:
    """The bar: the brackets are the card."""
    used, uncertain, free = ("█", "▒", "·") if blocks else ("#", "~", ".")
    return Text.assemble(
        "[",
        (used * cells.used, style),
        (uncertain * cells.uncertain, style),
        (free * cells.free, "dim"),
        "]",
        (used * cells.used_beyond, "red"),
        (uncertain * cells.uncertain_beyond, "red"),
    )


def share_bar(part: int, whole: int, width: int, *, blocks: bool) -> Text:
    """A plain bar for a table's row."""
    return Text(("█" if blocks else "#") * share_cells(part, whole, width), style="cyan")
