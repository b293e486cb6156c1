"""The order in which a model lists its parameters, which is that of torch's Module.parameters(): the embedding, block
by block, what follows them. peft's adapters stand inside the modules that they adapt, after the parameters of these.
"""

from __future__ import annotations

from functools import lru_cache

from launcher.models import Role
from launcher.planner.gradients import is_of_embedding
from launcher.planner.inventory import Block, Held, Inventory

Parameters = tuple[Held, ...]


@lru_cache(maxsize=64)
def before_blocks(inventory: Inventory) -> Parameters:
    """The embedding."""
    return tuple(p for p in inventory.root.parameters if is_of_embedding(p))


@lru_cache(maxsize=64)
def after_blocks(inventory: Inventory) -> Parameters:
    """The final norm and the head."""
    return tuple(p for p in inventory.root.parameters if not is_of_embedding(p))


@lru_cache(maxsize=64)
def groups(inventory: Inventory) -> tuple[tuple[int, Parameters], ...]:
    """All of it: how many times, one after the other, and the parameters."""
    blocks = ((block.copies, in_order(block)) for block in inventory.blocks)
    return (1, before_blocks(inventory)), *blocks, (1, after_blocks(inventory))


@lru_cache(maxsize=64)
def modules(block: Block) -> tuple[Parameters, ...]:
    """A block's modules, each with its own parameters and its adapters."""
    found: dict[str, list[Held]] = {}
    for parameter in block.parameters:
        found.setdefault(_module(parameter), []).append(parameter)
    return tuple(map(tuple, found.values()))


def in_order(block: Block) -> Parameters:
    """A block's parameters."""
    return tuple(parameter for module in modules(block) for parameter in module)


def _module(parameter: Held) -> str:
    """The module's name: of stacked experts peft adapts one inside the other (peft 0.21 tuners/lora/layer.py
    ParamWrapper)."""
    if parameter.role is Role.ADAPTER:
        return parameter.name.partition(".lora_")[0].removesuffix(".base_layer")
    return parameter.name.rpartition(".")[0]
