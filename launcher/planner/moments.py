"""The moments of a step, and of an evaluation, at which memory can peak.

A forward pass is at its highest in a block, or where a sharding gathers what comes next. From the loss on, gradients
grow while what the forward pass kept shrinks: block by block, and inside a block from its MLP to its attention. Both
change steadily between the last block and the first, so that the ends of each decide.
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


class Point(StrEnum):
    """How far a forward pass is. The gathers are those of FSDP2, whose buffers of two groups then overlap; the parts of
    a block around its highest are where ZeRO-3 can have gathered more."""

    EMBEDDING = "in the embedding"
    FIRST_GATHER = "before the first block"
    NEXT_GATHER = "before the last block"
    ATTENTION = "in a block's attention"
    BLOCK = "in the last block's forward pass"
    QUANTISED = "in a quantised layer of the last block's forward pass"
    DOWN = "in a block's last projection"
    NORM_GATHER = "before the final norm"
    NORM = "in the final norm"
    HEAD_GATHER = "before the head"
    HEAD = "in the head"
    LOSS = "at the loss"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moment:
    """One of them, and the phase that it belongs to. place and part are None outside the blocks' backward pass, point
    outside the forward pass. There is one object for each, and formulas ask which it is."""

    name: str
    phase: Phase
    place: Place | None = None
    part: Part | None = None
    point: Point | None = None

    @property
    def is_trained(self) -> bool:
        """Whether a backward pass follows, for which things are kept."""
        return self.phase is not Phase.EVALUATION

    def __str__(self) -> str:
        return self.name


# The phases are the job's own (jobs/phases.py): the loss begins with the head and ends with the backward pass.
FORWARDS: dict[Point, Moment] = {
    point: Moment(name=point, phase=Phase.LOSS if point is Point.HEAD_GATHER else Phase.FORWARD, point=point)
    for point in Point
    if point not in (Point.HEAD, Point.LOSS)
}
EVALUATIONS: dict[Point, Moment] = {
    point: Moment(name=f"{point}, evaluating", phase=Phase.EVALUATION, point=point) for point in Point
}
HEAD_FORWARD = Moment(name=Point.HEAD, phase=Phase.LOSS, point=Point.HEAD)
LOSS = Moment(name=Point.LOSS, phase=Phase.LOSS, point=Point.LOSS)
LOSS_BACKWARD = Moment(name="in the loss's backward pass", phase=Phase.BACKWARD)
HEAD = Moment(name="in the head's backward pass", phase=Phase.BACKWARD)
AFTER_HEAD = Moment(name="after the head's backward pass", phase=Phase.BACKWARD)
IN_BLOCKS = tuple(
    Moment(name=f"{place} ({part})", phase=Phase.BACKWARD, place=place, part=part) for place in Place for part in Part
)
EMBEDDING = Moment(name="in the embedding's backward pass", phase=Phase.BACKWARD)

MOMENTS = (HEAD_FORWARD, LOSS, LOSS_BACKWARD, HEAD, AFTER_HEAD, *IN_BLOCKS, EMBEDDING)
BEFORE_GRADIENTS = (HEAD_FORWARD, LOSS, LOSS_BACKWARD)
