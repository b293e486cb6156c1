"""Gradients that live in the parameters' own shape, over the phases of a step.

The backward pass goes from the last block to the first: gradients grow while saved activations shrink, and a plan
takes the highest of three moments.
"""

from __future__ import annotations

from enum import StrEnum

from launcher.planner.terms import FORWARD_TO_OPTIMIZER, term
from launcher.planner.types import Phase, Term, TermKind


class Moment(StrEnum):
    """A moment of the backward pass: in the last block, in the first, and after it, when what lies outside the blocks
    is reduced."""

    LAST_BLOCK = "in the last block"
    FIRST_BLOCK = "in the first block"
    AFTER_BLOCKS = "after the first block"


def gradient_terms(
    *, whole_bytes: int, start_bytes: int, accumulates: bool, moment: Moment, formula: str, source: str
) -> tuple[Term, ...]:
    """Gradients that exist from their backward pass to the end of the optimizer step.

    start_bytes: those that exist when the last block's backward begins, the head's and the final norm's. With
    accumulation all of them exist from the second micro batch on (zero_grad sets them to None).
    """
    source = f"{source}; torch optim zero_grad(set_to_none=True)"
    if accumulates:
        return term("gradients", TermKind.GRADIENTS, whole_bytes, FORWARD_TO_OPTIMIZER, formula=formula, source=source)
    if moment is not Moment.LAST_BLOCK:
        phases = (Phase.BACKWARD, Phase.OPTIMIZER)
        return term("gradients", TermKind.GRADIENTS, whole_bytes, phases, formula=formula, source=source)
    return term(
        "gradients so far", TermKind.GRADIENTS, start_bytes, (Phase.BACKWARD,), formula="outside blocks", source=source
    ) + term("gradients", TermKind.GRADIENTS, whole_bytes, (Phase.OPTIMIZER,), formula=formula, source=source)
