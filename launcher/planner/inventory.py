"""What a job holds: every parameter with its state, gathered into blocks that repeat.

The transformer blocks of a model are nearly always alike, so identical ones are held once with a count: a plan
for 405 billion parameters then costs no more than one for a small model.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache

from launcher.models import ModelShape, Parameter, Role, lora_parameters, quantised_parameters
from launcher.planner.moments import Part
from launcher.spec import JobSpec, LoraBias, MethodKind, MethodSpec


class State(StrEnum):
    """What happens to a parameter: trained, an adapter (trained, too), frozen as stored, or frozen and quantised."""

    TRAINED = "trained"
    ADAPTER = "adapter"
    FROZEN = "frozen"
    QUANTISED = "quantised"

    @property
    def is_trained(self) -> bool:
        """Whether the optimizer steps it."""
        return self in (State.TRAINED, State.ADAPTER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One parameter of one block: its name inside the block, its shape before any sharding, and its state."""

    name: str
    shape: tuple[int, ...]
    role: Role
    state: State
    numel: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", math.prod(self.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Parameters that are gathered and released together; `copies` blocks are exactly alike."""

    copies: int
    parameters: tuple[Held, ...]

    @cached_property
    def trained(self) -> tuple[Held, ...]:
        """Those that the optimizer steps."""
        return tuple(p for p in self.parameters if p.state.is_trained)

    @cached_property
    def trained_numel(self) -> int:
        """Elements in one copy that the optimizer steps."""
        return sum(p.numel for p in self.trained)

    def made_at(self, part: Part) -> tuple[Held, ...]:
        """The trained parameters that have their gradient when the block's backward pass is so far."""
        return self._made[part]

    @cached_property
    def _made(self) -> dict[Part, tuple[Held, ...]]:
        return {part: tuple(p for p in self.trained if _is_made(p.name, part)) for part in Part}

    def numel(self, *states: State) -> int:
        """Elements in one copy, over the given states (all of them when none is given)."""
        return sum(p.numel for p in self.parameters if not states or p.state in states)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inventory:
    """Every parameter of a job. root: embeddings, final norm and head; blocks: the kinds of transformer block.

    Two of them are never compared: each is its own key for what is computed from it once.
    """

    root: Block
    blocks: tuple[Block, ...]

    @cached_property
    def is_tied(self) -> bool:
        """Whether the head is the embedding."""
        return not any(p.role is Role.HEAD for p in self.root.parameters)

    @cached_property
    def groups(self) -> tuple[Block, ...]:
        """The root and the blocks."""
        return (self.root, *self.blocks)

    @cached_property
    def num_layers(self) -> int:
        """Transformer layers."""
        return sum(block.copies for block in self.blocks)

    @cached_property
    def largest_block(self) -> Block:
        """The block with the most elements."""
        return max(self.blocks, key=Block.numel)

    def counted(self, *states: State) -> tuple[tuple[Held, int], ...]:
        """Each parameter of the given states (all when none is given) with the number of times it occurs."""
        return _counted(self, states)

    def numel(self, *states: State) -> int:
        """Elements over the whole model."""
        return _numel(self, states)

    @cached_property
    def trained_numel(self) -> int:
        """Elements that the optimizer steps."""
        return self.numel(State.TRAINED, State.ADAPTER)

    @cached_property
    def trained_tensors(self) -> tuple[tuple[int, int], ...]:
        """Elements of each tensor that the optimizer steps, and how often such a tensor occurs."""
        return tuple((p.numel, count) for p, count in self.counted(State.TRAINED, State.ADAPTER))

    def largest_numel(self, *states: State) -> int:
        """Elements of the largest single parameter; 0 where there is none."""
        return max((parameter.numel for parameter, _ in self.counted(*states)), default=0)


@lru_cache(maxsize=1024)
def _counted(inventory: Inventory, states: tuple[State, ...]) -> tuple[tuple[Held, int], ...]:
    return tuple(
        (parameter, group.copies)
        for group in inventory.groups
        for parameter in group.parameters
        if not states or parameter.state in states
    )


@lru_cache(maxsize=1024)
def _numel(inventory: Inventory, states: tuple[State, ...]) -> int:
    return sum(group.copies * group.numel(*states) for group in inventory.groups)


def _is_made(name: str, part: Part) -> bool:
    """Whether the backward pass of a block has come past a parameter: the way back from down_proj to q_proj."""
    if part is Part.MLP:
        return ".down_proj" in name or name.startswith("post_feedforward_layernorm")
    if part is Part.ATTENTION:
        return ".o_proj" in name or not name.startswith(("self_attn.", "input_layernorm"))
    return True


def inventory(spec: JobSpec, shape: ModelShape) -> Inventory:
    """What a job holds of a model; made once for each model and method."""
    return _inventory(_Same(shape), spec.method)


class _Same:
    """A model's shape as a key: as itself, for to compare thousands of parameters takes longer than to use them."""

    __slots__ = ("shape",)

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def __hash__(self) -> int:
        return id(self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.shape is self.shape


@lru_cache(maxsize=256)
def _inventory(model: _Same, method: MethodSpec) -> Inventory:
    root: list[Held] = []
    layers: defaultdict[int, list[Held]] = defaultdict(list)
    for parameter, state in _parameters(method, model.shape):
        held = Held(name=_name_in_block(parameter), shape=parameter.shape, role=parameter.role, state=state)
        (root if parameter.layer is None else layers[parameter.layer]).append(held)
    counts = Counter(tuple(layer) for layer in layers.values())
    return Inventory(
        root=Block(copies=1, parameters=tuple(root)),
        blocks=tuple(Block(copies=copies, parameters=parameters) for parameters, copies in counts.items()),
    )


def _parameters(method: MethodSpec, shape: ModelShape) -> Iterator[tuple[Parameter, State]]:
    if method.kind is MethodKind.FULL:
        yield from ((parameter, State.TRAINED) for parameter in shape.parameters)
        return
    assert method.targets is not None
    assert method.rank is not None
    added = lora_parameters(shape, method.targets, method.rank, method.bias or LoraBias.NONE)
    unfrozen = {parameter.name for parameter in added if parameter.role is not Role.ADAPTER}
    quantised = {p.name for p in quantised_parameters(shape)} if method.kind is MethodKind.QLORA else set[str]()
    for parameter in shape.parameters:
        if parameter.name in unfrozen:
            yield parameter, State.TRAINED
        else:
            yield parameter, State.QUANTISED if parameter.name in quantised else State.FROZEN
    yield from ((parameter, State.ADAPTER) for parameter in added if parameter.role is Role.ADAPTER)


def _name_in_block(parameter: Parameter) -> str:
    """The name without what tells one block from another: 'self_attn.q_proj.weight'."""
    if parameter.layer is None:
        return parameter.name
    return parameter.name.partition(f"layers.{parameter.layer}.")[2]
