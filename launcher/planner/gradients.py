"""Gradients that live in the parameters' own shape, over the phases of a step."""

from __future__ import annotations

from functools import lru_cache

from launcher.models import Role
from launcher.planner.inventory import Block, Held, Inventory
from launcher.planner.moments import AFTER_HEAD, BEFORE_GRADIENTS, EMBEDDING, HEAD, LOSS, Moment, Part, Place
from launcher.planner.terms import at, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload


def made_in_root(inventory: Inventory, moment: Moment) -> tuple[Held, ...]:
    """The trained parameters outside the blocks that have their gradient: final norm and head from the head's
    backward pass on, the embedding at the end. A tied one is both: its gradient waits from the head to the end."""
    trained = inventory.root.trained
    if moment in BEFORE_GRADIENTS:
        return ()
    if moment is EMBEDDING or inventory.is_tied:
        return trained
    return tuple(p for p in trained if not is_of_embedding(p))


def copies_made(inventory: Inventory, block: Block, moment: Moment) -> int:
    """How many whole blocks of a kind have all their gradients."""
    if moment is EMBEDDING:
        return block.copies
    if moment.place is Place.FIRST:
        return block.copies - (block is inventory.largest_block)
    return 0


def running_parts(inventory: Inventory, moment: Moment) -> tuple[Held, ...]:
    """The trained parameters of the running block that have their gradient."""
    if moment.part is None:
        return ()
    return inventory.largest_block.made_at(moment.part)


@lru_cache(maxsize=1024)
def made_numel(inventory: Inventory, moment: Moment) -> int:
    """Trained elements that have their gradient at a moment of a first backward pass."""
    return (
        sum(p.numel for p in made_in_root(inventory, moment))
        + sum(block.trained_numel * copies_made(inventory, block, moment) for block in inventory.blocks)
        + sum(p.numel for p in running_parts(inventory, moment))
    )


@lru_cache(maxsize=1024)
def in_flight_numel(inventory: Inventory, moment: Moment) -> int:
    """Elements of the gradient that was just computed: the largest there is around a moment."""
    if moment in BEFORE_GRADIENTS:
        return 0
    if moment in (HEAD, AFTER_HEAD):
        found = [p for p in inventory.root.trained if p.role in (Role.HEAD, Role.EMBEDDING)]
        found = [p for p in found if inventory.is_tied or not is_of_embedding(p)]
    elif moment is EMBEDDING:
        found = [p for p in inventory.root.trained if is_of_embedding(p)]
    else:
        assert moment.part is not None
        before = inventory.largest_block.made_at(Part.ATTENTION) if moment.part is Part.END else ()
        found = [p for p in inventory.largest_block.made_at(moment.part) if p not in before]
    return max((p.numel for p in found), default=0)


def is_of_experts(inventory: Inventory, moment: Moment) -> bool:
    """Whether the gradient that was just computed is one of stacked experts, the largest of a block's."""
    return moment.place is not None and any(p.role is Role.EXPERT for p in inventory.largest_block.trained)


def is_of_embedding(parameter: Held) -> bool:
    """Whether it is the embedding or its adapter."""
    return parameter.role is Role.EMBEDDING or "lora_embedding" in parameter.name


def gradient_terms(work: Workload, *, whole_bytes: int, formula: str, source: str) -> tuple[Term, ...]:
    """Gradients of earlier forward passes, with accumulation, and all of them in the optimizer's phase."""
    phases: tuple[Phase, ...] = (Phase.OPTIMIZER,)
    if work.accumulates:
        phases = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)
    return term("gradients", TermKind.GRADIENTS, whole_bytes, phases, formula=formula, source=ZERO_GRAD.format(source))


def gradients_so_far(work: Workload, moment: Moment, *, made_bytes: int, source: str) -> tuple[Term, ...]:
    """Those that exist at a moment; with accumulation all of them do already."""
    if work.accumulates or moment is LOSS:
        return ()
    return at(
        moment,
        "gradients so far",
        TermKind.GRADIENTS,
        made_bytes,
        formula=f"{made_bytes:,} B exist {moment}",
        source=ZERO_GRAD.format(source),
    )


ZERO_GRAD = "{}; torch 2.13 optim zero_grad(set_to_none=True)"
