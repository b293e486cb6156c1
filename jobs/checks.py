"""What the job checks about itself, because each of these has been seen to go wrong with exit code 0.

A model in no wrapper, ranks that train the same rows, weights replicated where they should be sharded, dtypes that a
library changed, a save that wrote nothing. Every function raises CheckFailed or returns what it found.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from jobs.dtypes import dtype_name
from jobs.sharding import expected_wrapper, num_elements, num_local_elements, wrapper_name
from launcher.precision import dtypes, is_deepspeed
from launcher.spec import JobSpec, MethodKind, Optimizer, ShardKind
from launcher.units import ceil_div

QUANTISED, FROZEN, TRAINED = "quantised", "frozen", "trained"
QUANTISED_LAYERS = ("Linear4bit", "Linear8bitLt")
MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")  # torch's names, and bitsandbytes'
PARTITION_SLACK = 1.05  # partitions are padded; 5 % is far from the factor of two of a replica on two ranks


class CheckFailed(RuntimeError):
    """The job is not doing what was asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The parameters of one kind: how many elements there are, how many this rank holds, in which dtypes."""

    num_elements: int
    num_local_elements: int
    dtypes: dict[str, int]


def wrapper(model: nn.Module, spec: JobSpec) -> str:
    """The class the model is really wrapped in, which must be the one the sharding stands for."""
    found, expected = wrapper_name(model), expected_wrapper(spec)
    if found != expected:
        raise CheckFailed(f"shard={spec.shard.kind} must wrap the model in {expected}, and it is in {found}")
    if found == "DeepSpeedEngine":
        stage, wanted = model.zero_optimization_stage(), 2 if spec.shard.kind is ShardKind.ZERO2 else 3
        if stage != wanted:
            raise CheckFailed(f"DeepSpeed runs ZeRO stage {stage}, and shard={spec.shard.kind} asks for {wanted}")
    return found


def world_size(seen_by_trainer: int, spec: JobSpec) -> int:
    """The number of ranks, the same for torch.distributed, the Trainer and the plan."""
    seen_by_torch = dist.get_world_size() if dist.is_initialized() else 1
    if not seen_by_torch == seen_by_trainer == spec.world_size:
        raise CheckFailed(
            f"the plan is for {spec.world_size} ranks, torch sees {seen_by_torch} and the Trainer {seen_by_trainer}"
        )
    return seen_by_torch


def parameter_groups(model: nn.Module) -> dict[str, Group]:
    """Elements and dtypes of the model's parameters by kind: quantised, frozen, trained."""
    return {kind: _group(parameters) for kind, parameters in _by_kind(model).items()}


def _by_kind(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    quantised = {id(module.weight) for module in model.modules() if type(module).__name__ in QUANTISED_LAYERS}
    by_kind: dict[str, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        kind = TRAINED if parameter.requires_grad else QUANTISED if id(parameter) in quantised else FROZEN
        by_kind.setdefault(kind, []).append(parameter)
    return by_kind


def _group(parameters: list[nn.Parameter]) -> Group:
    names: Counter[str] = Counter()
    for parameter in parameters:
        names[dtype_name(parameter.dtype)] += num_elements(parameter)
    return Group(
        num_elements=sum(num_elements(parameter) for parameter in parameters),
        num_local_elements=sum(num_local_elements(parameter) for parameter in parameters),
        dtypes=dict(names),
    )


def sharded(model: nn.Module, groups: dict[str, Group], spec: JobSpec) -> None:
    """Under FSDP2 and ZeRO-3 every parameter is split, the 4-bit ones too; elsewhere every rank holds all."""
    split = spec.shard.kind in (ShardKind.FSDP, ShardKind.ZERO3)
    if split:
        mark = "_local_tensor" if spec.shard.kind is ShardKind.FSDP else "ds_tensor"
        whole = [name for name, parameter in model.named_parameters() if not hasattr(parameter, mark)]
        if whole:
            raise CheckFailed(f"{len(whole)} parameters are not sharded, among them {whole[0]}")
    for kind, parameters in _by_kind(model).items():
        group, total = groups[kind], groups[kind].num_elements
        most = sum(_largest_share(parameter, spec.world_size) for parameter in parameters) if split else total
        if group.num_local_elements > most:
            raise CheckFailed(f"this rank holds {group.num_local_elements} of {total} {kind} elements: not sharded")
        if not split and group.num_local_elements != total:
            raise CheckFailed(f"this rank holds {group.num_local_elements} of {total} {kind} elements: not whole")


def _largest_share(parameter: nn.Parameter, world_size: int) -> int:
    """Elements of the rank that holds the most: FSDP2 splits rows, so that 16 rows on 64 ranks are a row on each of 16;
    ZeRO-3 splits elements."""
    if hasattr(parameter, "ds_tensor"):
        return ceil_div(num_elements(parameter), world_size)
    num_rows = parameter.shape[0]
    return ceil_div(num_rows, world_size) * (num_elements(parameter) // num_rows)


def parameter_dtypes(groups: dict[str, Group], spec: JobSpec) -> None:
    """Every trained, frozen and quantised parameter is in its planned dtype."""
    planned = dtypes(spec)
    expected = {TRAINED: planned.trained, FROZEN: planned.frozen, QUANTISED: spec.method.storage_dtype}
    for kind, group in groups.items():
        dtype = expected[kind]
        if set(group.dtypes) != {dtype}:
            raise CheckFailed(f"{kind} parameters are {sorted(group.dtypes)}, and {dtype} was planned")
    if spec.method.kind is MethodKind.QLORA and QUANTISED not in groups:
        raise CheckFailed("method=qlora, and no layer of the model is quantised")


def gradient_dtypes(model: nn.Module, spec: JobSpec) -> list[str]:
    """The dtypes of the gradients that the optimizer is about to take; DeepSpeed tells what it accumulates in."""
    if is_deepspeed(spec.shard.kind):
        found = {model.optimizer.gradient_accumulation_dtype}
    else:
        found = {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None}
    names = sorted(dtype_name(dtype) for dtype in found)
    if names != [dtypes(spec).gradients]:
        raise CheckFailed(f"gradients are {names}, and {dtypes(spec).gradients} was planned")
    return names


def master_dtypes(model: nn.Module, spec: JobSpec) -> list[str]:
    """The dtypes of the weights that the engine updates in place of the model's own; none outside DeepSpeed."""
    if not is_deepspeed(spec.shard.kind):
        return []
    masters = _engine_masters(model.optimizer)
    names = sorted({dtype_name(master.dtype) for master in masters})
    expected = dtypes(spec).master or dtypes(spec).trained
    if names != [expected]:
        raise CheckFailed(f"master weights are {names}, and {expected} was planned")
    return names


def optimizer_states(model: nn.Module, optimizer: Any, spec: JobSpec) -> dict[str, Any]:
    """Dtypes and local elements of Adam's two moments after the first step, which must be as planned and sharded."""
    inner = model.optimizer.optimizer if is_deepspeed(spec.shard.kind) else optimizer
    names: Counter[str] = Counter()
    for state in inner.state.values():
        for key, value in state.items():
            if key in MOMENTS and isinstance(value, torch.Tensor):
                local = getattr(value, "_local_tensor", value)
                names[dtype_name(local.dtype)] += local.numel()
    planned = dtypes(spec).optimizer_states.value
    allowed = {planned} if spec.train.optimizer is Optimizer.ADAMW else {"uint8", "float32"}  # 8-bit keeps small ones
    if not names or not set(names) <= allowed:
        raise CheckFailed(f"optimizer states are {dict(names)}, and {planned} was planned")
    return {"dtypes": sorted(names), "num_local_elements": sum(names.values())}


def optimizer_sharded(num_local_elements: int, num_trained: int, spec: JobSpec) -> None:
    """DeepSpeed splits the optimizer states evenly. FSDP2's are as the parameters, which optimizer_complete holds."""
    if not is_deepspeed(spec.shard.kind) or spec.world_size == 1:
        return
    if num_local_elements > 2 * (num_trained / spec.world_size * PARTITION_SLACK + 4096):
        raise CheckFailed(f"this rank holds {num_local_elements} optimizer-state elements: they are not sharded")


def optimizer_complete(num_state_elements: int, trained: Group, spec: JobSpec) -> None:
    """Adam keeps two moments for every trained element that this rank holds; DeepSpeed pads its partitions."""
    expected = 2 * trained.num_local_elements
    if not is_deepspeed(spec.shard.kind) and num_state_elements != expected:
        raise CheckFailed(f"the optimizer keeps {num_state_elements} state elements, and {expected} belong to it")


def distinct_rows(rows: list[int], num_rows: int, spec: JobSpec) -> dict[str, int]:
    """All ranks together were given as many different rows in the first step as there were places for them."""
    by_rank = gather(rows)
    together = [row for rank_rows in by_rank for row in rank_rows]
    distinct = len(set(together))
    if distinct < min(len(together), num_rows):
        raise CheckFailed(f"in one step {spec.world_size} ranks took {len(together)} rows, of which {distinct} differ")
    return {"first_step_rows": len(together), "first_step_distinct_rows": distinct}


def saved_tensors(folder: Path, num_expected: int) -> dict[str, int]:
    """The safetensors files in a folder hold exactly as many elements as they should, none of them empty."""
    from safetensors import safe_open

    num_tensors, total = 0, 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
                shape = file.get_slice(name).get_shape()
                num_tensors, total = num_tensors + 1, total + _product(shape)
    if total != num_expected:
        raise CheckFailed(f"{folder} holds {total} elements in {num_tensors} tensors, and {num_expected} were trained")
    return {"saved_tensors": num_tensors, "saved_elements": total}


def gather(value: Any) -> list[Any]:
    """The value of every rank, in order of rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _engine_masters(optimizer: Any) -> list[torch.Tensor]:
    """DeepSpeed's master partitions: stage 1 and 2 keep one flat tensor a group, stage 3 one a sub-group."""
    stage3 = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    return list(stage3 if stage3 is not None else optimizer.single_partition_of_fp32_groups)


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
