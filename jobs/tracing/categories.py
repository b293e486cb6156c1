"""What each storage turned out to be, so that a traced peak can be told as terms of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from jobs.tracing.blocks import Block
from jobs.tracing.recorder import Recorder
from launcher.planner.types import Phase, TermKind
from launcher.spec import JobSpec, MethodKind, ShardKind

COMMUNICATION = ("c10d::", "fsdp::", "_c10d_functional::")


def note_parameters(recorder: Recorder, parameters: Iterable[Any], spec: JobSpec) -> None:
    """Weights, and what is trained beside them. Under FSDP2 they are shards; a whole one is an all-gathered copy."""
    trained = TermKind.WEIGHTS if spec.method.kind is MethodKind.FULL else TermKind.ADAPTERS
    for parameter in parameters:
        kind = trained if parameter.requires_grad else TermKind.WEIGHTS
        if spec.shard.kind is ShardKind.FSDP and not isinstance(parameter, DTensor):
            kind = TermKind.SHARDING_BUFFERS
        recorder.categorise([parameter], kind)


def note_gradients(recorder: Recorder, parameters: Iterable[Any]) -> None:
    """Gradients that are there."""
    recorder.categorise((p.grad for p in parameters if p.grad is not None), TermKind.GRADIENTS)


def note_optimizer_states(recorder: Recorder, optimizer: Any) -> None:
    """Moments, wherever the optimizer keeps them."""
    for state in optimizer.state.values():
        recorder.categorise((v for v in state.values() if isinstance(v, torch.Tensor)), TermKind.OPTIMIZER_STATES)


def category_of(spec: JobSpec) -> Callable[[Block], TermKind]:
    """The category of a block: as told, or else by the library, the operation, the shape and the phase that made it."""
    vocabulary = spec.model.config.get("vocab_size")

    def category(block: Block) -> TermKind:
        if block.category is not None:
            return block.category
        if block.made_for is not None:
            return block.made_for
        if block.operation.startswith(COMMUNICATION):
            return TermKind.SHARDING_BUFFERS
        if len(block.shape) > 1 and block.shape[-1] == vocabulary:
            return TermKind.LOGITS
        return BY_PHASE.get(block.phase, TermKind.WORKSPACES)

    return category


BY_PHASE: dict[Phase | None, TermKind] = {
    Phase.LOAD: TermKind.WEIGHTS,
    Phase.FORWARD: TermKind.ACTIVATIONS,
    Phase.LOSS: TermKind.LOGITS,
    Phase.BACKWARD: TermKind.ACTIVATIONS,
    Phase.EVALUATION: TermKind.ACTIVATIONS,
    Phase.OPTIMIZER: TermKind.WORKSPACES,
}
