"""The glue between the job and the sharding libraries: what each of them needs to do what its name says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from jobs.dtypes import torch_dtype
from launcher.precision import dtypes, is_deepspeed
from launcher.spec import JobSpec, Precision, ShardKind


def prepare_libraries(spec: JobSpec) -> None:
    """Settle what the libraries would otherwise decide by themselves; before any of them builds its state."""
    if is_deepspeed(spec.shard.kind) and spec.device.kind == "cpu":
        skip_deepspeed_compilation()


def skip_deepspeed_compilation() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives at the first use on CPU (57-88 s); gloo serves."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def accelerator_context(spec: JobSpec) -> AbstractContextManager[None]:
    """The context in which the Trainer must be built, for accelerate to wrap the model as the job says."""
    if spec.shard.kind is ShardKind.FSDP and spec.device.kind == "cpu":
        return _settling(_shard_cpu_ranks)
    if spec.shard.kind is ShardKind.DDP and spec.world_size == 1:
        return _settling(_leave_unwrapped)
    return nullcontext()


def _shard_cpu_ranks(state: Any, fsdp_plugin: Any) -> None:
    """Do for MULTI_CPU what AcceleratorState does for MULTI_GPU where a plugin is given.

    It leaves MULTI_CPU alone, which then trains DDP with exit code 0 (accelerate 1.15, state.py).
    """
    from accelerate.utils import DistributedType

    _set_distributed_type(state, DistributedType.FSDP)
    if state._mixed_precision != "no":
        fsdp_plugin.set_mixed_precision(state._mixed_precision)
    state.fsdp_plugin = fsdp_plugin


def _leave_unwrapped(state: Any, _fsdp_plugin: Any) -> None:
    """Keep accelerate from wrapping a single rank in DDP, whose buckets would be a second copy of the gradients."""
    from accelerate.utils import DistributedType

    _set_distributed_type(state, DistributedType.NO)


def _set_distributed_type(state: Any, kind: Any) -> None:
    from accelerate.state import PartialState

    state.distributed_type = kind
    PartialState._shared_state["distributed_type"] = kind


@contextmanager
def _settling(settle: Callable[[Any, Any], None]) -> Iterator[None]:
    """Let `settle` have the last word on every AcceleratorState built in this context."""
    from accelerate.state import AcceleratorState

    original = AcceleratorState.__init__

    def initialise(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        is_new = not AcceleratorState._shared_state
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if is_new:
            settle(self, fsdp_plugin)

    AcceleratorState.__init__ = initialise  # type: ignore[method-assign]
    try:
        yield
    finally:
        AcceleratorState.__init__ = original  # type: ignore[method-assign]


def set_fsdp_precision(plugin: Any, spec: JobSpec) -> None:
    """Half-precision all-gathers, fp32 reductions, and outputs left as they are.

    accelerate's own policy reduces in half precision and casts the loss to it too.
    """
    if spec.train.precision in (Precision.FP32, Precision.BF16_PURE):
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch_dtype(dtypes(spec).compute), reduce_dtype=torch.float32, output_dtype=None
    )


def wrapper_name(model: nn.Module) -> str:
    """What the model really is wrapped in: fsdp, ddp, deepspeed, or none."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        return "FSDPModule"
    name = type(model).__name__
    return name if name in ("DistributedDataParallel", "DeepSpeedEngine") else "none"


def expected_wrapper(spec: JobSpec) -> str:
    """What the model must be wrapped in. One rank under ddp needs no wrapper."""
    if spec.shard.kind is ShardKind.DDP:
        return "DistributedDataParallel" if spec.world_size > 1 else "none"
    return "FSDPModule" if spec.shard.kind is ShardKind.FSDP else "DeepSpeedEngine"


def num_local_elements(parameter: nn.Parameter) -> int:
    """Elements of this parameter that this rank stores: its shard under FSDP2 and ZeRO-3, all of it elsewhere."""
    if hasattr(parameter, "ds_tensor"):
        return int(parameter.ds_tensor.numel())
    local = getattr(parameter, "_local_tensor", parameter)
    return int(local.numel())


def num_elements(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, however it is sharded."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
