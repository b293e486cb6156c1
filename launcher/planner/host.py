"""What a job needs outside its devices: host RAM of a node, and disk for checkpoints and the result."""

from __future__ import annotations

from launcher.planner import constants, optimizer
from launcher.planner.inventory import State
from launcher.planner.sharding import fsdp, zero2, zero3
from launcher.planner.workload import Workload
from launcher.precision import is_deepspeed
from launcher.spec import Dtype, MethodKind, Offload, ShardKind
from launcher.units import ceil_div

FP32 = Dtype.FLOAT32.num_bytes
TRAINED = (State.TRAINED, State.ADAPTER)


def host_ram_bytes_per_node(work: Workload, device_bytes_per_rank: int) -> int:
    """The higher of loading and training, over the ranks of the fullest node (the first).

    device_bytes_per_rank: on a CPU the "device" is the host's RAM, so the plan's own bytes count; 0 on CUDA.
    """
    ranks = work.spec.gpus_per_node
    if not work.on_cuda:
        return ranks * device_bytes_per_rank
    process = work.constants.get(constants.Key.CPU_PROCESS, work.spec.device, shard=work.spec.shard.kind).amount
    return ranks * process + max(loading_bytes(work), ranks * offloaded_bytes_per_rank(work))


def loading_bytes(work: Workload) -> int:
    """Host copies of the weights while they are read.

    FSDP reads on rank 0 alone and broadcasts (accelerate 1.15 cpu_ram_efficient_loading), which 4-bit weights cannot
    do; every other rank reads the model for itself.
    """
    one_copy = base_numel(work) * work.stored_dtype(loaded_state(work)).num_bytes
    reads_once = work.spec.shard.kind is ShardKind.FSDP and work.spec.method.kind is not MethodKind.QLORA
    return one_copy * (1 if reads_once else work.spec.gpus_per_node)


def loaded_state(work: Workload) -> State:
    """The state whose dtype the weights are loaded in."""
    return State.TRAINED if work.spec.method.kind is MethodKind.FULL else State.FROZEN


def base_numel(work: Workload) -> int:
    """Elements of the model without adapters."""
    return work.inventory.numel(State.TRAINED, State.FROZEN, State.QUANTISED)


def offloaded_bytes_per_rank(work: Workload) -> int:
    """What one rank keeps in host RAM for the whole run."""
    shard = work.spec.shard
    if shard.offload is Offload.NONE:
        return 0
    match shard.kind:
        case ShardKind.FSDP:
            weights = sum(fsdp.shard_bytes(work, state) for state in State if work.inventory.numel(state))
            tensors = fsdp.local_tensors(work, 0)
            states = optimizer.states_bytes(work.spec.train.optimizer, tensors, work.dtypes.optimizer_states)
            return weights + fsdp.sharded_gradient_bytes(work) + states
        case ShardKind.ZERO2:
            # fp32 master, two moments and the fp32 gradients it steps with; a half-precision copy for the way back.
            return zero2.partition_numel(work) * (4 * FP32 + work.gradient_bytes)
        case ShardKind.ZERO3:
            weights = sum(zero3.shard_bytes(work, state) for state in State if work.inventory.numel(state))
            states = zero3.partition_numel(work) * (4 * FP32 + work.gradient_bytes)
            return states + (weights if shard.offload is Offload.ALL else 0)
        case ShardKind.DDP:
            raise AssertionError("DDP offloads nothing")


def result_bytes(work: Workload) -> int:
    """The saved result: the adapter in the dtype it was trained in, or the whole model in the compute dtype."""
    if work.spec.method.kind is MethodKind.FULL:
        return base_numel(work) * work.compute_bytes
    width = work.compute_bytes if is_deepspeed(work.spec.shard.kind) else work.dtypes.trained.num_bytes
    return work.inventory.trained_numel * width


def checkpoint_bytes(work: Workload) -> int:
    """One checkpoint to resume from, over all ranks: what is trained, in the dtype the module holds, and its states.

    FSDP2 and ZeRO-2 write the trained weights a second time in a form of their own, DeepSpeed its fp32 master too;
    frozen weights are left out (transformers 5.23 trainer.py, _save_checkpoint, _save_optimizer_and_scheduler).
    """
    trained, kind = work.inventory.trained_numel, work.spec.train.optimizer
    weights = trained * work.dtypes.trained.num_bytes
    tensors = tuple((p.numel, count) for p, count in work.inventory.counted(*TRAINED))
    states_dtype = work.dtypes.optimizer_states
    if is_deepspeed(work.spec.shard.kind):
        tensors = ((ceil_div(trained, work.world_size), work.world_size),)
        states_dtype = Dtype.FLOAT32
        master_bytes = trained * FP32
    else:
        master_bytes = 0
    if work.spec.shard.kind in (ShardKind.FSDP, ShardKind.ZERO2):
        weights *= 2
    states = optimizer.states_bytes(kind, tensors, states_dtype) + optimizer.managed_bytes(kind, tensors)
    return weights + master_bytes + states
