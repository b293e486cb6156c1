"""ZeRO-2: whole half-precision weights; fp32 master, gradients and optimizer states in one flat partition a rank.

Source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py. The allgather bucket costs nothing: with
all_gather_into_tensor the updated weights are gathered in place (runtime/utils.py all_gather_into_tensor_dp_groups).
"""

from __future__ import annotations

from launcher.planner import optimizer
from launcher.planner.gradients import Moment, gradient_terms
from launcher.planner.inventory import State
from launcher.planner.outside import managed_term
from launcher.planner.terms import FROM_FIRST_STEP, FROM_WRAP, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import whole_weights
from launcher.planner.workload import Workload
from launcher.spec import Offload
from launcher.units import ceil_div, round_up

SOURCE = "deepspeed 0.19.8 runtime/zero/stage_1_and_2.py"
ALIGNMENT = 2  # nccl_start_alignment_factor


def rank_classes(work: Workload) -> tuple[tuple[int, ...], ...]:
    """Partitions are padded to equal sizes."""
    return (tuple(range(work.world_size)),)


def partition_numel(work: Workload) -> int:
    """Elements of one rank's flat partition, padding included."""
    return ceil_div(round_up(work.inventory.trained_numel, ALIGNMENT * work.world_size), work.world_size)


def terms(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """Weights and buckets; partition and states on the device, or on the host when offloaded."""
    del rank  # all ranks are alike
    on_device = (*whole_weights(work), *_bucket(work), *_in_flight(work), *_flattening(work))
    if work.spec.shard.offload is Offload.OPTIMIZER:
        return (*on_device, *_offload_buffer(work))
    return (*on_device, *_master(work), *_optimizer_states(work), *_gradients(work, moment), *_step(work))


def _master(work: Workload) -> tuple[Term, ...]:
    """The partition that the optimizer steps: a clone even where the weights are fp32 themselves."""
    numel = partition_numel(work)
    return term(
        "master weights, partition",
        TermKind.MASTER_WEIGHTS,
        numel * work.stepped_dtype.num_bytes,
        FROM_WRAP,
        formula=f"{numel:,} elements x {work.stepped_dtype.num_bytes} B",
        source=f"{SOURCE} single_partition_of_fp32_groups",
    )


def _optimizer_states(work: Workload) -> tuple[Term, ...]:
    numel, kind = partition_numel(work), work.spec.train.optimizer
    return term(
        "optimizer states, partition",
        TermKind.OPTIMIZER_STATES,
        optimizer.states_bytes(kind, [(numel, 1)], work.stepped_dtype),
        FROM_FIRST_STEP,
        formula=f"2 moments x {numel:,} elements ({kind})",
        source=optimizer.SOURCES[kind],
    ) + managed_term(work, ((numel, 1),))


def _gradients(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """This rank's partition of the averaged gradients, filled as the backward pass goes."""
    numel, width = partition_numel(work), work.gradient_bytes
    return gradient_terms(
        whole_bytes=numel * width,
        so_far_bytes=0 if moment is Moment.LAST_BLOCK else numel * width,
        accumulates=work.accumulates,
        formula=f"{numel:,} elements x {width} B",
        source=f"{SOURCE} averaged_gradients",
    )


def bucket_bytes(work: Workload) -> int:
    """The contiguous gradient buckets, allocated at the start of every backward pass whatever the model's size."""
    shard = work.spec.shard
    assert shard.reduce_bucket_size is not None
    return shard.reduce_bucket_size * work.gradient_bytes * (2 if shard.overlap_comm else 1)


def _bucket(work: Workload) -> tuple[Term, ...]:
    shard = work.spec.shard
    return term(
        "gradient buckets",
        TermKind.SHARDING_BUFFERS,
        bucket_bytes(work),
        (Phase.BACKWARD,),
        formula=f"{shard.reduce_bucket_size:,} elements x {work.gradient_bytes} B x {2 if shard.overlap_comm else 1}",
        source=f"{SOURCE} setup_buckets",
    )


def _in_flight(work: Workload) -> tuple[Term, ...]:
    """The gradient just computed; one larger than the bucket is reduced by itself."""
    numel = work.inventory.largest_numel(State.TRAINED, State.ADAPTER)
    return term(
        "gradient in flight",
        TermKind.GRADIENTS,
        numel * work.gradient_bytes,
        (Phase.BACKWARD,),
        formula=f"largest parameter, {numel:,} elements x {work.gradient_bytes} B",
        source=f"{SOURCE} reduce_independent_p_g_buckets_and_remove_grads",
    )


def _flattening(work: Workload) -> tuple[Term, ...]:
    """While the engine is built: the flat copy beside the trained weights; later the gradients that initialise the
    optimizer, in fp32. The first is larger but on one rank."""
    flat = work.inventory.trained_numel * work.dtypes.trained.num_bytes
    on_host = work.spec.shard.offload is Offload.OPTIMIZER
    zeros = 0 if on_host else partition_numel(work) * work.stepped_dtype.num_bytes
    master = 0 if on_host else partition_numel(work) * work.stepped_dtype.num_bytes
    return term(
        "flattening",
        TermKind.SHARDING_BUFFERS,
        max(flat - master, zeros),
        (Phase.WRAP,),
        formula="the larger of: flat copy of the trained weights (before the master exists), fp32 zeros of a partition",
        source=f"{SOURCE} flatten_dense_tensors_aligned, initialize_optimizer_states",
    )


def _step(work: Workload) -> tuple[Term, ...]:
    """The step flattens the averaged gradients and casts the flat copy to fp32; both stand beside the originals."""
    numel, width = partition_numel(work), work.gradient_bytes
    size = numel * (width + (work.stepped_dtype.num_bytes if width != work.stepped_dtype.num_bytes else 0))
    return term(
        "gradients, flat and fp32",
        TermKind.GRADIENTS,
        size,
        (Phase.OPTIMIZER,),
        formula=f"{numel:,} elements x {size // max(numel, 1)} B",
        source=f"{SOURCE} step",
    )


def _offload_buffer(work: Workload) -> tuple[Term, ...]:
    """A staging buffer as large as the largest parameter."""
    numel = work.inventory.largest_numel(State.TRAINED, State.ADAPTER)
    return term(
        "offload staging",
        TermKind.SHARDING_BUFFERS,
        numel * work.gradient_bytes,
        FROM_WRAP,
        formula=f"largest parameter, {numel:,} elements x {work.gradient_bytes} B",
        source=f"{SOURCE} temp_grad_buffer_for_gpu_offload",
    )
