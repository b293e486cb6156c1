"""A tied embedding's gradient: the head's part is there first, and waits for the embedding's own."""

from __future__ import annotations

from launcher.planner.gradients import is_of_embedding
from launcher.planner.inventory import Inventory
from launcher.planner.moments import BEFORE_GRADIENTS, EMBEDDING, Moment


def waiting_numel(inventory: Inventory, moment: Moment) -> int:
    """Elements of the head's gradient that autograd holds until the embedding's is added to it: the node that
    accumulates them runs once (torch 2.13 csrc/autograd/engine.cpp, dependencies). The sum of the two is a third tensor
    beside them, for a linear layer's gradient is a transposed view (input_buffer.cpp, can_accumulate_inplace)."""
    if not inventory.is_tied or moment in BEFORE_GRADIENTS:
        return 0
    numel = sum(p.numel for p in inventory.root.trained if is_of_embedding(p))
    return 2 * numel if moment is EMBEDDING else numel
