"""Gradients that live in the parameters' own shape, over the phases of a step.

The backward pass goes from the last block to the first: gradients grow while saved activations shrink, and a plan
takes the highest of three moments.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from launcher.models import Role
from launcher.planner.inventory import Block, Held, Inventory
from launcher.planner.terms import FORWARD_TO_OPTIMIZER, term
from launcher.planner.types import Phase, Term, TermKind


class Moment(StrEnum):
    """A moment of the backward pass: in the last block, in the first, and after it, when what lies outside the blocks
    is reduced."""

    LAST_BLOCK = "in the last block"
    FIRST_BLOCK = "in the first block"
    AFTER_BLOCKS = "after the first block"


def with_gradients(inventory: Inventory, moment: Moment) -> Callable[[Held, Block], int]:
    """How many copies of a parameter of a block have their gradient at a moment of the first backward pass.

    In the last block it is what follows the blocks; in the first everything but that block and the embedding, unless
    the head is the embedding.
    """
    tied = not any(p.role is Role.HEAD for p in inventory.root.parameters)
    first = inventory.largest_block

    def copies(parameter: Held, block: Block) -> int:
        if moment is Moment.AFTER_BLOCKS:
            return block.copies
        if block is inventory.root:
            return 1 if tied or parameter.role is not Role.EMBEDDING else 0
        return 0 if moment is Moment.LAST_BLOCK else block.copies - (block is first)

    return copies


def numel_with_gradients(inventory: Inventory, moment: Moment) -> int:
    """Trained elements that have their gradient at a moment of the first backward pass."""
    copies = with_gradients(inventory, moment)
    return sum(
        parameter.numel * copies(parameter, block)
        for block in inventory.groups
        for parameter in block.parameters
        if parameter.state.is_trained
    )


def gradient_terms(
    *, whole_bytes: int, so_far_bytes: int, accumulates: bool, formula: str, source: str
) -> tuple[Term, ...]:
    """Gradients that exist from their backward pass to the end of the optimizer step.

    so_far_bytes: those that exist at the moment for which the backward phase stands. With accumulation all of them
    exist from the second micro batch on (zero_grad sets them to None).
    """
    source = f"{source}; torch optim zero_grad(set_to_none=True)"
    phases: tuple[Phase, ...] = FORWARD_TO_OPTIMIZER if accumulates else (Phase.OPTIMIZER,)
    if not accumulates and so_far_bytes == whole_bytes:
        phases = (Phase.BACKWARD, Phase.OPTIMIZER)
    found = term("gradients", TermKind.GRADIENTS, whole_bytes, phases, formula=formula, source=source)
    if Phase.BACKWARD in phases:
        return found
    return found + term(
        "gradients so far",
        TermKind.GRADIENTS,
        so_far_bytes,
        (Phase.BACKWARD,),
        formula=f"{so_far_bytes:,} of {whole_bytes:,} B",
        source=source,
    )
