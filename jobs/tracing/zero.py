"""DeepSpeed's ZeRO-2 and ZeRO-3 on fake tensors (deepspeed 0.19.8): the engine is the real one.

- How much memory is free decides where ZeRO-2 flattens the weights (stage_1_and_2.py, available_memory()). It is asked
  of NVML or of the host, and answered here for the planned device.
- ZeRO-3 compares lists of numbers with rank 0's (zero/utils.py): what a fake broadcast brings has no values, and all
  ranks do the same. Left out are the few hundred bytes that it takes for it.
- ZeRO-3 cuts what it has gathered into one view a rank and parameter, to concatenate them, and gradients alike: the
  views take no memory and nearly all of a trace's time. Here the gathered parameter is made at once
  (partition_parameters.py, AllGatherCoalescedHandle.wait), and gradients are concatenated whole
  (comm/coalesced_collectives.py, reduce_scatter_coalesced).
- Its coordinator lists the parameters of hundreds of modules ahead of each (partitioned_param_coordinator.py): these
  lists are kept, whether a module is a leaf is looked up where the flag is, and nothing is looked up for a module that
  has nothing to release.
- It asks each parameter that it frees where its data is, and marks the data as used on the current stream, which makes
  two views of it (partition_parameters.py, free_param): no stream here is ever behind, so it is freed at once.
- Its engine registers passes for compiling, which no job here does, and imports torch's inductor for it (engine.py).

What a rank holds is told apart by the engine's own names, and what it makes on the way by the functions that make it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch

from jobs.sharding import wrapper_name
from jobs.tracing.recorder import Recorder
from jobs.tracing.target import Target
from launcher.planner.types import TermKind
from launcher.precision import is_deepspeed
from launcher.render.zero_config import deepspeed_config
from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec, MethodKind

Current = Callable[[], Recorder | None]

ZERO2_MAKES = {
    "setup_buckets": TermKind.SHARDING_BUFFERS,
    "reduce_ipg_grads": TermKind.SHARDING_BUFFERS,
    "get_flat_partition": TermKind.GRADIENTS,
    "step": TermKind.GRADIENTS,  # the averaged gradients flat, and in the master's dtype
}
ZERO3_MAKES = {
    "_DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads": TermKind.SHARDING_BUFFERS,
    "_prepare_sub_group": TermKind.GRADIENTS,
}
PARAMS_TO_RELEASE = "_PartitionedParameterCoordinator__params_to_release"
COORDINATOR_MAKES = {"fetch_sub_module": TermKind.SHARDING_BUFFERS}


def write_config(spec: JobSpec, run: RunFolder) -> None:
    """deepspeed.json, as the launcher writes it, of the job that is traced."""
    if is_deepspeed(spec.shard.kind):
        run.deepspeed.write_text(json.dumps(deepspeed_config(spec)))


def install(target: Target, recorder: Current) -> None:
    """Answer for the planned device and for the other ranks, and tell what the engine makes."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime import engine
    from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3, utils
    from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import nvtx

    os.environ["LOCAL_RANK"] = str(target.local_rank)  # what DeepSpeed takes its device from

    def available_memory(_self: Any, _device: int | None = None) -> int:
        found = recorder()
        return target.memory_bytes - (found.main.allocated_bytes if found is not None else 0)

    accelerator = type(get_accelerator())
    assert hasattr(accelerator, "available_memory")
    accelerator.available_memory = available_memory
    for name in ("assert_lst_len_same_as_other_ranks", "get_lst_from_rank0"):
        assert hasattr(utils, name), f"deepspeed.runtime.zero.utils.{name} is gone"
    utils.assert_lst_len_same_as_other_ranks = lambda _numbers: None
    utils.get_lst_from_rank0 = lambda numbers: numbers
    assert hasattr(AllGatherCoalescedHandle, "wait")
    AllGatherCoalescedHandle.wait = wait_for_gathered
    assert hasattr(partition_parameters, "free_param")
    partition_parameters.free_param = free_param
    assert hasattr(stage3, "reduce_scatter_coalesced")
    stage3.reduce_scatter_coalesced = reduce_scatter_coalesced
    assert hasattr(partitioned_param_coordinator, "iter_params")
    partitioned_param_coordinator.iter_params = _kept_lists(partitioned_param_coordinator.iter_params)
    assert hasattr(partitioned_param_coordinator, "z3_leaf_module")
    partitioned_param_coordinator.z3_leaf_module = is_leaf
    assert hasattr(PartitionedParameterCoordinator, PARAMS_TO_RELEASE)
    to_release = getattr(PartitionedParameterCoordinator, PARAMS_TO_RELEASE)
    setattr(PartitionedParameterCoordinator, PARAMS_TO_RELEASE, only_where_any(to_release))
    assert hasattr(engine, "is_deepcompile_supported")
    engine.is_deepcompile_supported = lambda: False
    assert hasattr(nvtx, "enable_nvtx")
    nvtx.enable_nvtx = False  # names for a profiler that is not there
    _tell(DeepSpeedZeroOptimizer, ZERO2_MAKES, recorder)
    _tell(stage3.DeepSpeedZeroOptimizer_Stage3, ZERO3_MAKES, recorder)
    _tell(PartitionedParameterCoordinator, COORDINATOR_MAKES, recorder)


def wait_for_gathered(handle: Any, handle_dependency: bool = True) -> None:
    """AllGatherCoalescedHandle.wait, neither quantised nor with a second partitioning, which no job here uses."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if handle.complete:
        return
    assert not handle.quantization
    assert not handle.use_secondary_tensor
    handle.allgather_handle.wait()
    flat = handle.partitions[0]
    for parameter in handle.params:
        gathered = torch.empty(parameter.ds_shape, dtype=flat.dtype, device=flat.device)
        parameter.data = gathered.to(parameter.ds_tensor.dtype)
        parameter.ds_status = ZeroParamStatus.AVAILABLE
    handle.complete = True
    if not handle_dependency and flat.device.type == "cuda":
        handle.data_buffer.append([flat])  # kept until the coordinator frees it, and with it all that was gathered


def free_param(parameter: Any) -> None:
    """partition_parameters.free_param without record_stream()."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    assert not parameter.ds_active_sub_modules, f"freed while in use: {parameter.ds_summary()}"
    parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    parameter.ds_status = ZeroParamStatus.NOT_AVAILABLE


def reduce_scatter_coalesced(tensors: list[torch.Tensor], group: Any = None) -> list[torch.Tensor]:
    """coalesced_collectives.reduce_scatter_coalesced, which concatenates the parts of all tensors rank by rank: here
    whole tensors, then what pads them, which is as much."""
    from deepspeed import comm
    from deepspeed.runtime.comm import coalesced_collectives

    rank, world_size = comm.get_rank(group), comm.get_world_size(group)
    flat = [tensor.view(-1) for tensor in tensors]
    parts = [-(-tensor.numel() // world_size) for tensor in flat]
    if len(tensors) == 1 and flat[0].numel() % world_size == 0:
        buffer = flat[0]
    else:
        padding = [
            torch.empty(missing, dtype=tensor.dtype, device=tensor.device)
            for other in range(world_size)
            for tensor, part in zip(flat, parts, strict=True)
            if (missing := part - _elements_of(other, tensor.numel(), part))
        ]
        buffer = torch.cat([*flat, *padding])
    buffer.div_(world_size)
    mine = buffer.narrow(0, rank * sum(parts), sum(parts))
    coalesced_collectives._torch_reduce_scatter_fn(buffer, mine, group=group)
    starts = accumulate(parts, initial=0)
    return [
        mine.narrow(0, start, _elements_of(rank, tensor.numel(), part))
        for start, tensor, part in zip(starts, flat, parts, strict=False)
    ]


def _elements_of(rank: int, num_elements: int, part: int) -> int:
    """How many of a tensor's elements are a rank's, where every rank but the last ones has `part`."""
    return min(max(num_elements - rank * part, 0), part)


def is_leaf(module: Any) -> bool:
    """z3_leaf_module. Nearly no module has the flag, and nn.Module raises an error before it says so."""
    return bool(module.__dict__.get("_z3_leaf", False))


def only_where_any(to_release: Callable[..., set[int]]) -> Callable[..., set[int]]:
    """__params_to_release, asked of modules with parameters that do not persist. The others' set is kept as it keeps
    its own: release_sub_module adds to it."""
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinators

    @functools.cache
    def found(coordinator: Any, module: Any, step: int) -> set[int]:
        parameters = coordinators.iter_params(module, recurse=is_leaf(module))
        if all(parameter.ds_persist for parameter in parameters):
            return set()
        return to_release(coordinator, module, step)

    return found


def _kept_lists(list_parameters: Callable[..., Iterable[Any]]) -> Callable[..., Iterable[Any]]:
    """iter_params, asked once of each module and as soon as it uses further parameters of other modules."""
    kept: dict[tuple[Any, bool, int], tuple[Any, ...]] = {}

    def listed(module: Any, recurse: bool = False) -> Iterable[Any]:
        key = (module, recurse, len(module._external_params))
        parameters = kept.get(key)
        if parameters is None:
            parameters = kept[key] = tuple(list_parameters(module, recurse))
        return parameters

    return listed


def _tell(owner: type, makes: dict[str, TermKind], recorder: Current) -> None:
    for name, category in makes.items():
        setattr(owner, name, _within(getattr(owner, name), category, recorder))


def _within(function: Any, category: TermKind, recorder: Current) -> Any:
    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        found = recorder()
        if found is None:
            return function(*args, **kwargs)
        with found.within(category):
            return function(*args, **kwargs)

    return told


def note(recorder: Recorder, model: Any, spec: JobSpec) -> None:
    """What the engine holds now. A parameter that ZeRO-3 has gathered is a buffer, unless it stays gathered."""
    if wrapper_name(model) != "DeepSpeedEngine":
        return
    trained = TermKind.WEIGHTS if spec.method.kind is MethodKind.FULL else TermKind.ADAPTERS
    for parameter in model.parameters():
        if hasattr(parameter, "ds_tensor"):
            own = trained if parameter.requires_grad else TermKind.WEIGHTS
            recorder.categorise([parameter.ds_tensor], own)
            recorder.categorise([parameter], own if parameter.ds_persist else TermKind.SHARDING_BUFFERS)
    engine = model.optimizer
    for names, category in HELD:
        for name in names:
            recorder.categorise(_tensors(getattr(engine, name, None)), category)


HELD = (
    (("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"), TermKind.MASTER_WEIGHTS),
    (("averaged_gradients", "grad_partitions_flat_buffer"), TermKind.GRADIENTS),
    (
        ("temp_grad_buffer_for_cpu_offload", "temp_grad_buffer_for_gpu_offload", "param_groups_fp16_flat_cpu_memory"),
        TermKind.SHARDING_BUFFERS,
    ),
)


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in lists and dicts of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []
