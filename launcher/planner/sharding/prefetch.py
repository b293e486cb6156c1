"""Which parameters ZeRO-3 has gathered, followed module by module through a forward pass.

Source: deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py, with a complete trace of one step. Each module's
hook fetches what the module needs, takes that off the queue of all uses to come, and then gathers ahead from the queue
until a bucket is full or max_live_parameters are there (_fetch_sub_module_impl). It does so whatever is in flight
already, and for modules without parameters too, so that it runs further and further ahead, over the loss into the
backward pass. A use whose parameters are still there is passed over for good, and fetched when its turn comes.

A module's parameters are released after its forward pass, however soon they are used again: what to release is
cached by module and step (__params_to_release, lru_cache), and the evaluation before the first step, which has no
backward pass, decided it first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from launcher.models import Role
from launcher.planner.inventory import Block, Held, Inventory, State
from launcher.units import ceil_div

# Modules called around a block's parameters that have none of their own: by the module before which they come.
BEFORE = {"input_layernorm": 1, "q_proj": 1, "qkv_proj": 1, "gate_proj": 1, "gate_up_proj": 1, "up_proj": 1}
ADAPTED_CALLS = 2  # a LoRA layer, and its dropout
BEFORE_EMBEDDING = 2  # the model and its decoder
AFTER_EMBEDDING = 1  # rotary embeddings

Use = tuple[tuple[int, int, int], ...]  # of one module: for each parameter its key, its elements and its bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Bytes gathered: the most while the embedding is there, and in each block; what is there at the loss; and that
    with what the backward pass begins with: the head's, and then the last block's."""

    embedding: int
    blocks: tuple[int, ...]
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


@lru_cache(maxsize=128)
def live(inventory: Inventory, stored: Stored, *, checkpointing: bool, bucket: int, limit: int) -> Live:
    """Follow one forward pass."""
    forward = tuple(_forward(inventory, stored))
    backward = tuple(_backward(inventory, stored, checkpointing))
    most, gathered = _follow(forward, backward, bucket, limit)
    ahead = sum(gathered.values())
    head = sum(size for key, _, size in forward[-1] if key not in gathered)
    number, block = tuple(_layers(inventory))[-1]
    last = {key: size for use in _block_forward(block, number, stored) for key, _, size in use}
    return Live(
        embedding=max(most[: BEFORE_EMBEDDING + 1]),
        blocks=tuple(_by_block(most[BEFORE_EMBEDDING + 1 + AFTER_EMBEDDING :], inventory, stored)),
        loss=ahead,
        head=ahead + head,
        last_block=ahead + sum(size for key, size in last.items() if key not in gathered),
    )


def _by_block(most: Sequence[int], inventory: Inventory, stored: Stored) -> Iterator[int]:
    """The most in each block, from what is gathered in its modules."""
    begin = 0
    for number, block in _layers(inventory):
        end = begin + len(_block_forward(block, number, stored))
        yield max(most[begin:end])
        begin = end


def _follow(
    forward: Sequence[Use], backward: Sequence[Use], bucket: int, limit: int
) -> tuple[list[int], dict[int, int]]:
    """The bytes gathered while each module runs, and what is there at the end of the forward pass. The bucket and the
    limit count elements."""
    queue = [(step, held) for step, use in enumerate((*forward, *backward)) for held in use]
    gathered: dict[int, int] = {}
    most: list[int] = []
    at = num_live = live = 0
    for step, use in enumerate(forward):
        for key, numel, size in use:
            if key not in gathered:
                gathered[key] = size
                num_live += numel
                live += size
        while at < len(queue) and queue[at][0] <= step:
            at += 1
        room, ahead = min(limit - num_live, bucket), 0
        while at < len(queue) and ahead < room:
            key, numel, size = queue[at][1]
            if key not in gathered:
                gathered[key] = size
                ahead += numel
                live += size
            at += 1
        num_live += ahead
        most.append(live)
        for key, numel, size in use:
            del gathered[key]
            num_live -= numel
            live -= size
    return most, gathered


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


def _calls(block: Block, number: int, stored: Stored) -> Iterator[Use]:
    for name, parameters in _modules(block):
        yield from ((),) * BEFORE.get(name.rsplit(".", 1)[-1], 0)
        base = [p for p in parameters if p.role is not Role.ADAPTER]
        adapters = [p for p in parameters if p.role is Role.ADAPTER]
        if adapters and "experts" not in name:
            yield from ((),) * ADAPTED_CALLS
            yield stored.use(base, number)
            yield from (stored.use([p], number) for p in adapters)
        else:
            yield stored.use(parameters, number)


@lru_cache(maxsize=64)
def _modules(block: Block) -> tuple[tuple[str, tuple[Held, ...]], ...]:
    """A block's modules in the order of their calls, each with its own parameters and its adapters."""
    found: dict[str, list[Held]] = {}
    for parameter in block.parameters:
        found.setdefault(_module(parameter.name), []).append(parameter)
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


def _place(module: str) -> int:
    return ORDER.index(module)
