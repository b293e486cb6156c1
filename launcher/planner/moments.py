"""The moments of a step at which memory can peak.

From the loss on, gradients grow while what the forward pass kept shrinks: block by block, and inside a block from its
MLP to its attention. Both change steadily between the last block and the first, so that the ends of each decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from launcher.planner.types import Phase


class Place(StrEnum):
    """Which block runs backward: the last, with which the backward pass begins, or the first."""

    LAST = "in the last block"
    FIRST = "in the first block"


class Part(StrEnum):
    """How far the backward pass of a block is: around the MLP's activation, around attention, or at its end."""

    MLP = "MLP"
    ATTENTION = "attention"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One of them, and the phase that it belongs to. place and part are None outside the blocks."""

    name: str
    phase: Phase
    place: Place | None = None
    part: Part | None = None

    def __str__(self) -> str:
        return self.name


# The phases are the job's own (jobs/phases.py): the loss ends where the backward pass begins.
HEAD_FORWARD = Moment(name="in the head", phase=Phase.LOSS)
LOSS = Moment(name="at the loss", phase=Phase.LOSS)
LOSS_BACKWARD = Moment(name="in the loss's backward pass", phase=Phase.BACKWARD)
HEAD = Moment(name="in the head's backward pass", phase=Phase.BACKWARD)
AFTER_HEAD = Moment(name="after the head's backward pass", phase=Phase.BACKWARD)
IN_BLOCKS = tuple(
    Moment(name=f"{place} ({part})", phase=Phase.BACKWARD, place=place, part=part) for place in Place for part in Part
)
EMBEDDING = Moment(name="in the embedding's backward pass", phase=Phase.BACKWARD)

MOMENTS = (HEAD_FORWARD, LOSS, LOSS_BACKWARD, HEAD, AFTER_HEAD, *IN_BLOCKS, EMBEDDING)
BEFORE_GRADIENTS = (HEAD_FORWARD, LOSS, LOSS_BACKWARD)
