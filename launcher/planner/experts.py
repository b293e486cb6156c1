"""LoRA on stacked experts: the adapted weights exist whole while a block runs.

Source: peft 0.21 tuners/lora/layer.py ParamWrapper: a parametrisation adds the product of the factors to the whole 3-D
weight (_LoraFactorsProxy, torch.baddbmm), the forward pass uses the sum, and autograd saves it for the inputs'
gradient; its own gradient is as large, before it becomes that of the factors.
"""

from __future__ import annotations

from functools import lru_cache

from launcher.models import Role
from launcher.planner.inventory import Block, State
from launcher.planner.moments import EMBEDDING, Moment, Part, Place, Point
from launcher.planner.terms import at
from launcher.planner.types import Term, TermKind
from launcher.planner.workload import Workload

SOURCE = "peft 0.21 tuners/lora/layer.py ParamWrapper, _LoraFactorsProxy"


@lru_cache(maxsize=64)
def merged_numels(block: Block) -> tuple[int, ...]:
    """Elements of each stack of experts that is adapted in a block. Factors of both stand in two wrappers; those of
    one have its inputs as their width."""
    stacks = [p for p in block.parameters if p.role is Role.EXPERT]
    widths = [
        p.shape[1]
        for p in block.parameters
        if p.state is State.ADAPTER and p.name.startswith("mlp.experts.") and ".lora_A." in p.name
    ]
    if len(widths) == len(stacks):
        return tuple(stack.numel for stack in stacks)
    return tuple(stack.numel for stack in stacks if stack.shape[-1] in widths)


def merged_forward(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """In a forward pass: the running block's; without checkpointing, those of all blocks that ran."""
    runs = moment.point is Point.BLOCK
    numel = _running(work) if runs else 0
    if moment.is_trained and not work.checkpointing and moment.point in AFTER_BLOCKS:
        numel = _of_all(work) - (_running(work) if moment.point in BEFORE_LAST else 0)
    return _made(work, moment, numel)


BEFORE_LAST = (Point.NEXT_GATHER, Point.QUANTISED)  # experts are not quantised: attention's layers come before them
AFTER_BLOCKS = (*BEFORE_LAST, Point.BLOCK, Point.NORM_GATHER, Point.NORM, Point.HEAD_GATHER)


def merged_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Those that wait for their backward pass, and in a block's MLP the weights of both projections with the gradient
    of one, of the down projection first and then, when its weight is gone, of the other."""
    waits = moment is not EMBEDDING and moment.place is not Place.FIRST and not work.checkpointing
    numel = _of_all(work) if waits else 0
    if moment.place is not None:
        numel = max(numel, _running(work)) + (_gradient(work) if moment.part is Part.MLP else 0)
    return _made(work, moment, numel)


def _made(work: Workload, moment: Moment, numel: int) -> tuple[Term, ...]:
    return at(
        moment,
        "adapted experts, whole",
        TermKind.WORKSPACES,
        numel * work.matmul_bytes,
        formula=f"{numel:,} elements x {work.matmul_bytes} B",
        source=SOURCE,
    )


def _running(work: Workload) -> int:
    return max(sum(merged_numels(block)) for block in work.inventory.blocks)


def _of_all(work: Workload) -> int:
    return sum(sum(merged_numels(block)) * block.copies for block in work.inventory.blocks)


def _gradient(work: Workload) -> int:
    """The most that a gradient adds to the weights: gate and up w, down d; w + d + d, then w + w."""
    numels = max((merged_numels(block) for block in work.inventory.blocks), key=sum)
    if len(numels) < 2:
        return sum(numels)
    up, down = numels
    return max(up + 2 * down, 2 * up) - (up + down)
