"""Which parameters ZeRO-3 has gathered, followed module by module through a forward pass.

Source: deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py, with a complete trace of one step. Each module's
hook fetches what the module needs, takes that off the queue of all uses to come, and then gathers ahead from the queue
until a bucket is full or max_live_parameters are there (_fetch_sub_module_impl). It does so whatever is in flight
already, and for modules without parameters too, so that it runs further and further ahead, over the loss into the
backward pass. A use whose parameters are still there is passed over for good, and fetched when its turn comes.

A module's parameters are released after its forward pass, however soon the backward pass uses them again: what to
release is cached by module and step (__params_to_release, lru_cache), and the evaluation before the first step, which
has no backward pass, decided it first. What the forward pass itself uses again soon stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from launcher.models import Role
from launcher.planner.block import has_adapted_experts
from launcher.planner.inventory import Block, Held, Inventory, State
from launcher.planner.moments import Part, Point
from launcher.planner.sharding.allgather import Fetched, Gathered
from launcher.units import ceil_div

# Modules called around a block's parameters that have none of their own: by the module before which they come.
BEFORE = {"input_layernorm": 1, "q_proj": 1, "qkv_proj": 1, "gate_proj": 1, "gate_up_proj": 1, "up_proj": 1}
BEFORE_EMBEDDING = 2  # the model and its decoder
AFTER_EMBEDDING = 1  # rotary embeddings

Use = tuple[Fetched, ...]  # of one module


class InBlocks(NamedTuple):
    """The most bytes gathered in each block: up to its MLP, where that is at its widest, and in its last projection."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    down: tuple[int, ...]

    def at(self, point: Point | None) -> tuple[int, ...]:
        """Those at a point of a forward pass, block by block."""
        if point is Point.ATTENTION:
            return self.attention
        return self.down if point is Point.DOWN else self.mlp


class Call(NamedTuple):
    """Bytes gathered around one module: the most while its parameters are fetched, while it runs, and after it."""

    fetching: int
    running: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Bytes gathered: the most while the embedding is there, and in each block; in the final norm; what is there at the
    loss; and that with what the backward pass begins with: the head's, and then the last block's."""

    embedding: int
    blocks: InBlocks
    norm: int
    loss: int
    head: int
    last_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How parameters count. threshold: what has at most so many elements is always there. storage_bytes: of one element
    of a quantised parameter, which holds two weights a byte; the others' are those of trained and frozen ones."""

    threshold: int
    storage_bytes: int
    trained_bytes: int
    frozen_bytes: int

    def use(self, parameters: Iterable[Held], number: int) -> Use:
        """What a module of a layer uses."""
        found = ((hash((number, p.name)), *self.held(p)) for p in parameters)
        return tuple(one for one in found if one[1] > self.threshold)

    def held(self, parameter: Held) -> tuple[int, int]:
        """Elements and bytes of a parameter while it is gathered."""
        if parameter.state is State.QUANTISED:
            numel = ceil_div(parameter.numel, 2 * self.storage_bytes)
            return numel, numel * self.storage_bytes
        width = self.trained_bytes if parameter.state.is_trained else self.frozen_bytes
        return parameter.numel, parameter.numel * width


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is gathered ahead, in elements: at a time, and altogether; and how far off a next use may be for which
    a parameter stays."""

    bucket: int
    live: int
    reuse: int


NO_ORDER = Limits(bucket=0, live=0, reuse=0)


class Order(StrEnum):
    """What is known of the modules to come: nothing while they are recorded, those of an evaluation where that was
    recorded, or those of a whole step."""

    NONE = "none"
    EVALUATION = "an evaluation's"
    STEP = "a step's"


@lru_cache(maxsize=256)
def live(inventory: Inventory, stored: Stored, limits: Limits, order: Order, *, checkpointing: bool) -> Live:
    """Follow one forward pass."""
    forward = tuple(_forward(inventory, stored))
    backward = tuple(_backward(inventory, stored, checkpointing)) if order is Order.STEP else ()
    calls, gathered = _follow(forward, backward, NO_ORDER if order is Order.NONE else limits)
    ahead = gathered.size_bytes
    head = sum(size for key, _, size in forward[-1] if key not in gathered)
    by_block = _by_block(calls[BEFORE_EMBEDDING + 1 + AFTER_EMBEDDING :], inventory, stored)
    number, block = tuple(_layers(inventory))[-1]
    last = {key: size for use in _block_forward(block, number, stored) for key, _, size in use}
    return Live(
        embedding=max(max(call) for call in calls[: BEFORE_EMBEDDING + 1]),
        blocks=InBlocks(*zip(*by_block, strict=True)),
        norm=calls[-2].running,
        loss=ahead,
        head=ahead + head,
        last_block=ahead + sum(size for key, size in last.items() if key not in gathered),
    )


def _by_block(calls: Sequence[Call], inventory: Inventory, stored: Stored) -> Iterator[tuple[int, int, int]]:
    """The most in the parts of each block, in the order of InBlocks, from what is gathered in its modules."""
    begin = 0
    for number, block in _layers(inventory):
        found = calls[begin : begin + len(_block_forward(block, number, stored))]
        begin += len(found)
        widest = _widest(block)
        before, mlp, down = found[: widest.start], found[widest.start : widest.stop], found[widest.stop :]
        yield (
            max(*map(_most, before), *(call.fetching for call in mlp)),
            max(call.after if down else call.running for call in mlp),
            max(map(_most, down), default=0),
        )


def _most(call: Call) -> int:
    return call.running if call.running > call.fetching else call.fetching


@lru_cache(maxsize=64)
def _widest(block: Block) -> range:
    """The calls in a block of the module with which its MLP is at its widest."""
    begin = 0
    for name, parameters in _modules(block):
        end = begin + sum(1 for _ in _module_calls(name, parameters))
        if name in WIDEST:
            return range(begin, end)
        begin = end
    raise AssertionError(f"none of {WIDEST}")


def _follow(forward: Sequence[Use], backward: Sequence[Use], limits: Limits) -> tuple[list[Call], Gathered]:
    """What is gathered around each module, and at the end of the forward pass."""
    kept = _kept(forward, limits.reuse)
    queue = [(step, held) for step, use in enumerate((*forward, *backward)) for held in use]
    gathered = Gathered()
    calls: list[Call] = []
    at, end = 0, len(queue)
    for step, use in enumerate(forward):
        fetching = gathered.fetch(use) if use else 0
        while at < end and queue[at][0] <= step:
            at += 1
        wanted: dict[int, Fetched] = {}
        room, ahead = min(limits.live - gathered.numel, limits.bucket), 0
        while at < end and ahead < room:
            key, numel, _ = held = queue[at][1]
            if key not in gathered and key not in wanted:
                wanted[key] = held
                ahead += numel
            at += 1
        if wanted:
            gathered.gather(wanted.values())
        running = gathered.size_bytes
        for held in use:
            if (step, held[0]) not in kept:
                gathered.release(held)
        calls.append(Call(fetching, running, gathered.size_bytes))
    return calls, gathered


def _kept(forward: Sequence[Use], distance: int) -> set[tuple[int, int]]:
    """The uses, by module and key, after which a parameter stays because another comes before so many elements of
    other modules do (__params_to_release): a tied embedding, and what a LoRA layer asks for."""
    found: set[tuple[int, int]] = set()
    last: dict[int, tuple[int, int]] = {}
    passed = 0
    for step, use in enumerate(forward):
        for key, numel, _ in use:
            if key in last and passed - last[key][1] < distance:
                found.add((last[key][0], key))
            passed += numel
            last[key] = (step, passed)
    return found


def _forward(inventory: Inventory, stored: Stored) -> Iterator[Use]:
    """The modules in the order of their calls."""
    root = inventory.root.parameters
    yield from ((),) * BEFORE_EMBEDDING
    yield stored.use([p for p in root if p.role is Role.EMBEDDING], -1)
    yield from ((),) * AFTER_EMBEDDING
    for number, block in _layers(inventory):
        yield from _block_forward(block, number, stored)
    yield ()
    yield stored.use([p for p in root if _is_head(p, inventory)], -1)


def _backward(inventory: Inventory, stored: Stored, checkpointing: bool) -> Iterator[Use]:
    """The uses of parameters on the way back. A checkpointed block begins with its last module, whose gradient is asked
    for first, and then runs forward again."""
    root = inventory.root.parameters
    yield stored.use([p for p in root if _is_head(p, inventory)], -1)
    for number, block in reversed(tuple(_layers(inventory))):
        uses = [use for use in _block_forward(block, number, stored) if use]
        if checkpointing:
            yield from uses[-1:]
            yield from uses
        yield from reversed(uses)
    # peft lets the embedding's output need a gradient where blocks are checkpointed (peft_model.py
    # _prepare_model_for_gradient_checkpointing), and DeepSpeed then fetches a frozen embedding for its backward pass.
    yield stored.use([p for p in root if p.role is Role.EMBEDDING and (p.state.is_trained or checkpointing)], -1)


def _is_head(parameter: Held, inventory: Inventory) -> bool:
    return parameter.role is (Role.EMBEDDING if inventory.is_tied else Role.HEAD)


def _layers(inventory: Inventory) -> Iterator[tuple[int, Block]]:
    number = 0
    for block in inventory.blocks:
        for _ in range(block.copies):
            yield number, block
            number += 1


@lru_cache(maxsize=512)
def _block_forward(block: Block, number: int, stored: Stored) -> tuple[Use, ...]:
    return tuple(_calls(block, number, stored))


def largest_use(block: Block, stored: Stored, part: Part) -> int:
    """Bytes of the module that uses the most in a part of a block's backward pass."""
    uses, begin = _block_forward(block, 0, stored), _widest(block).start
    return max(sum(size for _, _, size in use) for use in (uses[begin:] if part is Part.MLP else uses[:begin]))


def _calls(block: Block, number: int, stored: Stored) -> Iterator[Use]:
    for name, parameters in _modules(block):
        yield from (stored.use(used, number) for used in _module_calls(name, parameters))


def _module_calls(name: str, parameters: tuple[Held, ...]) -> Iterator[tuple[Held, ...]]:
    """The parameters of each module that is called for one that has a name: before it those that have none. A LoRA
    layer asks its first matrix for the dtype, which makes that a parameter of its own (peft 0.21 tuners/lora/layer.py
    Linear.forward; parameter_offload.py ZeROOrderedDict); it calls the layer it adapts, the dropout, and the matrices.
    """
    yield from ((),) * BEFORE.get(name.rsplit(".", 1)[-1], 0)
    adapters = tuple(p for p in parameters if p.role is Role.ADAPTER)
    if adapters and "experts" not in name:
        yield adapters[:1]
        yield tuple(p for p in parameters if p.role is not Role.ADAPTER)
        yield ()
        yield from ((p,) for p in adapters)
    else:
        yield parameters


@lru_cache(maxsize=64)
def _modules(block: Block) -> tuple[tuple[str, tuple[Held, ...]], ...]:
    """A block's modules in the order of their calls, each with its own parameters and its adapters. Where experts are
    adapted, the module around them and their router reads all of both first (peft 0.21 ParamWrapper)."""
    found: dict[str, list[Held]] = {}
    together = has_adapted_experts(block)
    for parameter in block.parameters:
        in_experts = together and parameter.name.startswith("mlp.")
        found.setdefault("mlp.experts" if in_experts else _module(parameter.name), []).append(parameter)
    return tuple(sorted(((name, tuple(held)) for name, held in found.items()), key=lambda entry: _place(entry[0])))


def _module(name: str) -> str:
    if name.startswith("mlp.experts"):
        return "mlp.experts"
    return name.partition(".lora_")[0].removesuffix(".weight").removesuffix(".bias")


ORDER = (
    "input_layernorm",
    "self_attn.qkv_proj",
    "self_attn.q_proj",
    "self_attn.q_norm",
    "self_attn.k_proj",
    "self_attn.k_norm",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "mlp.gate",
    "mlp.experts",
    "mlp.gate_up_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "post_feedforward_layernorm",
)


# Where an MLP's activations are at their widest: at its last projection but one, or in its experts.
WIDEST = ("mlp.up_proj", "mlp.gate_up_proj", "mlp.experts")


def _place(module: str) -> int:
    return ORDER.index(module)
