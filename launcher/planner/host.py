"""Host RAM of a node: processes, weights while they are read, what is offloaded, and what saving gathers.

Files are read through memory maps, whose pages the kernel gives up when it must: what is loaded in the dtype that it is
stored in takes no memory of its own until it is written to (transformers 5.23 modeling_utils.py safe_open; measured on
a 199M model: 0 MiB in bf16 from a bf16 file, 758 in fp32).
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.planner import optimizer, quantisation
from launcher.planner.constants import Key
from launcher.planner.inventory import State
from launcher.planner.sharding import fsdp, rows, zero2, zero3, zero3_layout
from launcher.planner.types import HostMoment, HostTerm
from launcher.planner.workload import Workload
from launcher.shards import waits_in_host_memory
from launcher.spec import Dtype, MethodKind, Offload, ShardKind

FP32 = Dtype.FLOAT32.num_bytes
TRAINED = (State.TRAINED, State.ADAPTER)
WHOLE_RUN = tuple(HostMoment)
WHILE_TRAINING = (HostMoment.TRAINING, HostMoment.SAVING)


def host_terms(work: Workload, device_bytes_per_rank: int) -> tuple[HostTerm, ...]:
    """What the ranks of the first node take of its RAM.

    device_bytes_per_rank: on a CPU the "device" is the host's RAM, so the plan's own bytes count, and with them
    everything below but the workers.
    """
    if not work.on_cuda:
        ranks = work.spec.gpus_per_node
        formula = f"{ranks} ranks x {device_bytes_per_rank:,} B"
        whole = _term("ranks", ranks * device_bytes_per_rank, WHOLE_RUN, formula, "the plan of a rank")
        return (*whole, *_workers(work))
    return (*_processes(work), *_workers(work), *_loading(work), *_offloaded(work), *_saving(work))


def peak_bytes(terms: Iterable[HostTerm]) -> int:
    """The most at any moment."""
    found = tuple(terms)
    return max(sum(t.size_bytes for t in found if moment in t.moments) for moment in HostMoment)


def host_ram_bytes_per_node(work: Workload, device_bytes_per_rank: int) -> int:
    """What the first node needs at its fullest moment."""
    return peak_bytes(host_terms(work, device_bytes_per_rank))


def _term(
    name: str, size_bytes: int, moments: tuple[HostMoment, ...], formula: str, source: str
) -> tuple[HostTerm, ...]:
    if size_bytes == 0:
        return ()
    return (HostTerm(name=name, size_bytes=size_bytes, moments=moments, formula=formula, source=source),)


def _processes(work: Workload) -> tuple[HostTerm, ...]:
    ranks, device = work.spec.gpus_per_node, work.spec.device
    process = work.constants.get(Key.GPU_RANK, device, shard=work.spec.shard.kind)
    cuda = work.constants.get(Key.CUDA_HOST, device)
    return (
        *_term("processes", ranks * process.amount, WHOLE_RUN, f"{ranks} ranks", process.provenance),
        *_term("CUDA libraries", ranks * cuda.amount, WHOLE_RUN, f"{ranks} ranks", cuda.provenance),
    )


def _workers(work: Workload) -> tuple[HostTerm, ...]:
    count = work.spec.gpus_per_node * work.spec.train.dataloader_workers
    worker = work.constants.get(Key.DATA_WORKER, work.spec.device)
    return _term("data workers", count * worker.amount, WHILE_TRAINING, f"{count} workers", worker.provenance)


def num_loading_copies(work: Workload) -> int:
    """How many ranks of the first node hold the weights in host RAM while they are read.

    Each rank reads for itself, and moves or shards the whole model afterwards: under FSDP2, too, where accelerate's
    cpu_ram_efficient_loading then drops what all but rank 0 have read (transformers 5.23 modeling_utils.py
    _load_pretrained_model; measured with a 199M model on two CPU ranks: 758 MiB of fp32 on both). Under ZeRO-3 rank 0
    alone reads, and each parameter goes from the file into the partitions (integrations/deepspeed.py; measured: 0 MiB
    of a 379 MiB file). 4-bit weights are quantised on the device one by one (bitsandbytes' device_map is the rank's own
    GPU unless told otherwise), and wait in host RAM where FSDP2 splits them.
    """
    is_partitioned = work.spec.shard.kind is ShardKind.ZERO3
    return 0 if is_partitioned or work.spec.method.kind is MethodKind.QLORA else work.spec.gpus_per_node


def loaded_dtype(work: Workload) -> Dtype:
    """The dtype that the weights are read in."""
    return work.stored_dtype(State.TRAINED if work.spec.method.kind is MethodKind.FULL else State.FROZEN)


def is_converted(work: Workload) -> bool:
    """Whether reading changes the dtype. A model that does not say what it is stored in is taken to be stored in
    another one: that needs more."""
    return work.spec.model.config.get("dtype") != loaded_dtype(work).value


def base_numel(work: Workload) -> int:
    """Elements of the model without adapters."""
    return work.inventory.numel(State.TRAINED, State.FROZEN, State.QUANTISED)


def _loading(work: Workload) -> tuple[HostTerm, ...]:
    copies, dtype = num_loading_copies(work), loaded_dtype(work)
    waiting = _waiting(work)
    if not is_converted(work):
        return waiting
    return waiting + _term(
        "weights, converted while read",
        copies * base_numel(work) * dtype.num_bytes,
        (HostMoment.LOADING,),
        f"{copies} x {base_numel(work):,} elements x {dtype.num_bytes} B ({dtype})",
        "transformers 5.23 modeling_utils.py _load_pretrained_model",
    )


def _waiting(work: Workload) -> tuple[HostTerm, ...]:
    """The quantised model on every rank of the node, until FSDP2 has sharded it. What is not quantised is read from the
    file when it is moved, unless it is converted."""
    if not waits_in_host_memory(work.spec):
        return ()
    ranks = work.spec.gpus_per_node
    packed = quantisation.total_packed_bytes(work) + quantisation.total_constants_bytes(work)
    frozen = work.inventory.numel(State.FROZEN) * loaded_dtype(work).num_bytes if is_converted(work) else 0
    return _term(
        "quantised weights, until they are sharded",
        ranks * (packed + frozen),
        (HostMoment.LOADING,),
        f"{ranks} ranks x ({packed:,} B of 4-bit values and constants + {frozen:,} B unquantised and converted)",
        "jobs/waiting.py",
    )


def offloaded_bytes_per_rank(work: Workload) -> int:
    """What one rank keeps in host RAM for the whole run."""
    shard = work.spec.shard
    if shard.offload is Offload.NONE:
        return 0
    match shard.kind:
        case ShardKind.FSDP:
            weights = sum(rows.shard_bytes(work, state) for state in State if work.inventory.numel(state))
            tensors = rows.local_tensors(work, 0)
            states = optimizer.states_bytes(work.spec.train.optimizer, tensors, work.dtypes.optimizer_states)
            return weights + fsdp.sharded_gradient_bytes(work) + states
        case ShardKind.ZERO2:
            # fp32 master, two moments and the fp32 gradients it steps with; a half-precision copy for the way back.
            return zero2.partition_numel(work) * (4 * FP32 + work.gradient_bytes)
        case ShardKind.ZERO3:
            weights = sum(zero3_layout.shard_bytes(work, state) for state in State if work.inventory.numel(state))
            states = zero3_layout.partition_numel(work) * (4 * FP32 + work.gradient_bytes)
            return states + (weights if shard.offload is Offload.ALL else 0)
        case ShardKind.DDP:
            raise AssertionError("DDP offloads nothing")


def pinning_bytes_per_rank(work: Workload) -> int:
    """What pinning adds to what is offloaded: torch rounds each pinned block up to a power of two."""
    return sum(power_of_two(size) - size for size in pinned_blocks(work))


def pinned_blocks(work: Workload) -> tuple[int, ...]:
    """Sizes of one rank's pinned blocks: under FSDP2 each shard of a parameter; DeepSpeed's flat fp32 master and the
    gradients beside it, in ZeRO-3 by sub-group."""
    shard = work.spec.shard
    if shard.offload is Offload.NONE:
        return ()
    if shard.kind is ShardKind.FSDP:
        return tuple(
            rows.padded_numel(shape, work.world_size) * width
            for parameter, count in work.inventory.counted()
            for shape, width in [rows.stored(work, parameter)]
            for _ in range(count)
        )
    if shard.kind is ShardKind.ZERO2:
        return (zero2.partition_numel(work) * FP32,) * 2
    return tuple(numel * FP32 for numel in zero3_layout.sub_group_numels(work)) * 2


def power_of_two(size_bytes: int) -> int:
    """The smallest power of two that is at least this."""
    return 1 << max(0, size_bytes - 1).bit_length()


def _offloaded(work: Workload) -> tuple[HostTerm, ...]:
    ranks, kind = work.spec.gpus_per_node, work.spec.shard.kind
    each, pinned = offloaded_bytes_per_rank(work), pinning_bytes_per_rank(work)
    source = {
        ShardKind.FSDP: "torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param.py",
        ShardKind.ZERO2: zero2.SOURCE,
        ShardKind.ZERO3: zero3.SOURCE,
    }.get(kind, "")
    what = "weights, gradients and optimizer states" if kind is ShardKind.FSDP else "fp32 master, gradients and states"
    if kind is ShardKind.ZERO3 and work.spec.shard.offload is Offload.ALL:
        what = f"weights, {what}"
    return (
        *_term("offloaded", ranks * each, WHILE_TRAINING, f"{ranks} ranks x {each:,} B: {what}", source),
        *_term(
            "pinned blocks, rounded up",
            ranks * pinned,
            WHILE_TRAINING,
            f"{ranks} ranks x {pinned:,} B: each block to a power of two",
            "torch 2.13 aten/src/ATen/core/CachingHostAllocator.h",
        ),
    )


def gathered_on_save(work: Workload) -> tuple[int, int, str, str]:
    """Bytes that one rank gathers in host RAM when the model is saved, how many ranks of the first node do, what it is,
    and the source (transformers 5.23 trainer.py save_model; accelerate 1.15 accelerator.py get_state_dict)."""
    kind = work.spec.shard.kind
    is_full = work.spec.method.kind is MethodKind.FULL
    trained = work.inventory.trained_numel * work.dtypes.trained.num_bytes
    if kind is ShardKind.ZERO2:
        return (
            module_bytes(work) if is_full else trained,
            1,
            "rank 0 copies what it writes",
            "jobs/trainer.py save_model",
        )
    if kind is ShardKind.FSDP:
        source = "torch 2.13 distributed/checkpoint/state_dict.py: full_state_dict, cpu_offload"
        return module_bytes(work), 1, "rank 0 gathers the whole model", source
    if kind is ShardKind.ZERO3:
        source = "deepspeed 0.19.8 runtime/engine.py _zero3_consolidated_16bit_state_dict"
        return trained, 1, "rank 0 gathers what is trained", source
    saved = base_numel(work) * work.compute_bytes if is_full else trained
    return saved, 1 if work.on_cuda else 0, "rank 0 copies what it writes", "safetensors 0.8 torch.py save_file"


def module_bytes(work: Workload) -> int:
    """Every parameter of the model as a module holds it, unsharded."""
    return sum(
        count * shape_numel(shape) * width
        for parameter, count in work.inventory.counted()
        for shape, width in [rows.stored(work, parameter)]
    )


def shape_numel(shape: tuple[int, ...]) -> int:
    """Elements of a tensor."""
    numel = 1
    for size in shape:
        numel *= size
    return numel


def gathered_states_bytes(work: Workload) -> int:
    """FSDP2 gathers the whole optimizer's states on rank 0 for a checkpoint, after the model is written."""
    if work.spec.shard.kind is not ShardKind.FSDP:
        return 0
    tensors = tuple((p.numel, count) for p, count in work.inventory.counted(*TRAINED))
    return optimizer.states_bytes(work.spec.train.optimizer, tensors, work.dtypes.optimizer_states)


def _saving(work: Workload) -> tuple[HostTerm, ...]:
    each, ranks, what, source = gathered_on_save(work)
    states = gathered_states_bytes(work)
    if states > each * ranks:
        each, ranks, what = states, 1, "rank 0 gathers the optimizer's states"
    return _term("gathered to be saved", ranks * each, (HostMoment.SAVING,), f"{ranks} x {each:,} B: {what}", source)
