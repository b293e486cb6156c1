"""Disk: what a checkpoint and the result take, by the files they are made of.

A checkpoint holds what resuming needs (transformers 5.23 trainer.py _save_checkpoint): the trained weights as plain
transformers or peft loads them, in the dtype the module holds, and the optimizer in the form of its sharding. Frozen
weights are in none of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.models import Role
from launcher.planner import optimizer, quantisation
from launcher.planner.host import TRAINED, base_numel
from launcher.planner.inventory import State
from launcher.planner.types import DiskTerm
from launcher.planner.workload import Workload
from launcher.precision import is_deepspeed
from launcher.spec import Dtype, MethodKind, ShardKind
from launcher.units import ceil_div

# The description of one quantised tensor, as JSON in a tensor of bytes: about this long.
QUANT_STATE_BYTES = 164
SAVED_BY = "transformers 5.23 trainer.py _save_checkpoint"


def total_bytes(terms: Iterable[DiskTerm]) -> int:
    """All files together."""
    return sum(term.size_bytes for term in terms)


def result_terms(work: Workload) -> tuple[DiskTerm, ...]:
    """The adapter in the dtype it was trained in, or the whole model in the compute dtype."""
    if work.spec.method.kind is MethodKind.FULL:
        return _term("model", base_numel(work), work.compute_bytes, "jobs/result.py: in the compute dtype")
    width = work.compute_bytes if is_deepspeed(work.spec.shard.kind) else work.dtypes.trained.num_bytes
    return _term("adapter", work.inventory.trained_numel, width, "peft 0.21 save_pretrained")


def checkpoint_terms(work: Workload) -> tuple[DiskTerm, ...]:
    """One checkpoint to resume from, over all ranks."""
    trained, width = work.inventory.trained_numel, work.dtypes.trained.num_bytes
    name = "model" if work.spec.method.kind is MethodKind.FULL else "adapter"
    weights = _term(name, trained, width, SAVED_BY)
    return (*weights, *_second_copy(work), *_constants(work), *_master(work), *_states(work))


def _second_copy(work: Workload) -> tuple[DiskTerm, ...]:
    """FSDP2's pytorch_model_fsdp.bin and ZeRO-2's module states hold the trained weights once more; ZeRO-3's do not."""
    sources = {
        ShardKind.FSDP: "accelerate 1.15 utils/fsdp_utils.py save_fsdp_model",
        ShardKind.ZERO2: "deepspeed 0.19.8 runtime/engine.py _save_checkpoint",
    }
    source = sources.get(work.spec.shard.kind)
    if source is None:
        return ()
    trained = work.inventory.trained_numel
    return _term("weights in the sharding's own form", trained, work.dtypes.trained.num_bytes, source)


def _constants(work: Workload) -> tuple[DiskTerm, ...]:
    """DeepSpeed leaves frozen parameters out of its module states, but not what bitsandbytes keeps beside 4-bit ones:
    ZeRO-2 writes it once, ZeRO-3 each rank."""
    num_tensors = sum(count for _, count in work.inventory.counted(State.QUANTISED))
    if not num_tensors or not is_deepspeed(work.spec.shard.kind):
        return ()
    copies = work.world_size if work.spec.shard.kind is ShardKind.ZERO3 else 1
    each = quantisation.total_constants_bytes(work) + num_tensors * QUANT_STATE_BYTES
    return (
        DiskTerm(
            name="quantisation constants",
            size_bytes=copies * each,
            formula=f"{copies} x {each:,} B for {num_tensors:,} tensors",
            source="deepspeed 0.19.8 runtime/engine.py _save_checkpoint; bitsandbytes 0.50 functional.py QuantState",
        ),
    )


def _master(work: Workload) -> tuple[DiskTerm, ...]:
    if not is_deepspeed(work.spec.shard.kind):
        return ()
    source = "deepspeed 0.19.8 runtime/zero: fp32_flat_groups, single_partition_of_fp32_groups"
    return _term("master weights", work.inventory.trained_numel, work.stepped_dtype.num_bytes, source)


def _states(work: Workload) -> tuple[DiskTerm, ...]:
    kind, trained = work.spec.train.optimizer, work.inventory.trained_numel
    tensors = tuple((p.numel, count) for p, count in work.inventory.counted(*TRAINED))
    dtype: Dtype = work.dtypes.optimizer_states
    if is_deepspeed(work.spec.shard.kind):
        tensors = tuple((ceil_div(numel, work.world_size), work.world_size) for numel in flat_groups(work))
        dtype = work.stepped_dtype
    size = optimizer.states_bytes(kind, tensors, dtype) + optimizer.managed_bytes(kind, tensors)
    formula = f"2 moments x {trained:,} elements ({kind})"
    return (
        DiskTerm(name="optimizer states", size_bytes=size, formula=formula, source=optimizer.SOURCES[kind]),
    ) if size else ()  # fmt: skip


def flat_groups(work: Workload) -> tuple[int, ...]:
    """Elements of DeepSpeed's flat groups: what is decayed, and what is not, as the Trainer divides them (transformers
    5.23 trainer.py get_decay_parameter_names: no norms and no biases)."""
    trained = tuple(work.inventory.counted(*TRAINED))
    kept = sum(p.numel * count for p, count in trained if p.role in (Role.NORM, Role.BIAS))
    decayed = sum(p.numel * count for p, count in trained) - kept
    return tuple(numel for numel in (decayed, kept) if numel)


def _term(name: str, numel: int, width: int, source: str) -> tuple[DiskTerm, ...]:
    formula = f"{numel:,} elements x {width} B"
    return (DiskTerm(name=name, size_bytes=numel * width, formula=formula, source=source),) if numel else ()
