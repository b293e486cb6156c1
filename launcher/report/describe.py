"""A job in words: the names people know, the model's size, the batch arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.models import lora_parameters, model_shape
from launcher.planner.types import Phase
from launcher.spec import JobSpec, LoraBias, MethodKind, Offload, ShardKind
from launcher.units import format_count

METHODS = {MethodKind.FULL: "full fine-tuning", MethodKind.LORA: "LoRA", MethodKind.QLORA: "QLoRA"}
SHARDS = {ShardKind.DDP: "DDP", ShardKind.FSDP: "FSDP2", ShardKind.ZERO2: "ZeRO-2", ShardKind.ZERO3: "ZeRO-3"}


def plural(count: int, noun: str) -> str:
    """'1 rank', '8 ranks'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def brief(text: str) -> str:
    """One line of what may be many: a traceback's last says what it was."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def num_parameters(spec: JobSpec) -> int:
    """All parameters of the base model, tied ones once."""
    return model_shape(spec.model.config).num_parameters


def num_trainable_parameters(spec: JobSpec) -> int:
    """What the optimizer steps: the whole model, or its adapters and the biases that the method unfreezes."""
    method = spec.method
    if method.kind is MethodKind.FULL:
        return num_parameters(spec)
    assert method.targets is not None, "an adapter method has targets"
    assert method.rank is not None, "an adapter method has a rank"
    added = lora_parameters(model_shape(spec.model.config), method.targets, method.rank, method.bias or LoraBias.NONE)
    return sum(parameter.num_elements for parameter in added)


def model_words(spec: JobSpec) -> str:
    """'smollm2-135m, 134.5M parameters, 4.9M trained (3.63 % of the base)'."""
    total = num_parameters(spec)
    words = f"{spec.model.name}, {format_count(total)} parameters"
    if spec.method.kind is MethodKind.FULL:
        return f"{words}, all trained"
    return f"{words}, {trained_words(num_trainable_parameters(spec), total)}"


def trained_words(num_trainable: int, total: int) -> str:
    """How many adapter parameters are trained beside the base's `total`, and their share of it."""
    return f"{format_count(num_trainable)} trained ({100 * num_trainable / total:.2f} % of the base)"


def method_words(spec: JobSpec) -> str:
    """'LoRA rank 16', 'full fine-tuning'."""
    name = METHODS[spec.method.kind]
    return name if spec.method.rank is None else f"{name} rank {spec.method.rank}"


def shard_words(spec: JobSpec) -> str:
    """'ZeRO-3 with the optimizer in host RAM', 'one rank, no wrapper'."""
    if spec.shard.kind is ShardKind.DDP and spec.world_size == 1:
        return "no wrapper"
    offloaded = {
        Offload.NONE: "",
        Offload.OPTIMIZER: " with the optimizer in host RAM",
        Offload.ALL: " with parameters and optimizer in host RAM",
    }
    return SHARDS[spec.shard.kind] + offloaded[spec.shard.offload]


def rank_words(spec: JobSpec) -> str:
    """'8 ranks', '16 ranks on 2 nodes'."""
    ranks = plural(spec.world_size, "rank")
    return ranks if spec.nodes == 1 else f"{ranks} on {plural(spec.nodes, 'node')}"


def job_words(spec: JobSpec) -> str:
    """The job after its model: method, sharding, ranks, precision and device."""
    device = "no card named" if spec.device.name == "any" else spec.device.name
    return ", ".join((method_words(spec), shard_words(spec), rank_words(spec), spec.train.precision.value, device))


def batch_words(spec: JobSpec) -> str:
    """How the global batch comes about, and how long its sequences are."""
    ranks = plural(spec.world_size, "rank")
    factors = f"micro batch {spec.micro_batch} x accumulation {spec.gradient_accumulation} x {ranks}"
    tokens = "packed to" if spec.train.packing else "of up to"
    return (
        f"{factors} = global batch {spec.train.global_batch}, sequences {tokens} {spec.train.sequence_length:,} tokens"
    )


def phase_words(phases: Sequence[Phase]) -> str:
    """Phases as runs in the order they happen: 'forward to backward, save'; 'all phases'."""
    order = list(Phase)
    indices = sorted(order.index(phase) for phase in phases)
    if len(indices) == len(order):
        return "all phases"
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(_run_words(order[run[0]], order[run[-1]]) for run in runs)


def _run_words(first: Phase, last: Phase) -> str:
    return first.value if first is last else f"{first.value} to {last.value}"


def rank_range_words(ranks: Sequence[int]) -> str:
    """'rank 0', 'ranks 1-7'; the ranks of one class follow each other or are listed."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return "ranks " + ", ".join(str(rank) for rank in ranks)
