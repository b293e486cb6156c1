"""ZeRO-2: whole half-precision weights; fp32 master, gradients and optimizer states in one flat partition a rank.

Source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py. The allgather bucket costs nothing: with
all_gather_into_tensor the updated weights are gathered in place (runtime/utils.py all_gather_into_tensor_dp_groups).

A rank keeps the averaged gradients of every parameter that its partition touches, whole (copy_grads_in_partition);
where an embedding spans several partitions, each of those ranks holds all of its gradient.
"""

from __future__ import annotations

from launcher.planner import optimizer
from launcher.planner.gradients import in_flight_numel, is_of_embedding, running_parts
from launcher.planner.inventory import Inventory
from launcher.planner.moments import AFTER_HEAD, BEFORE_GRADIENTS, EMBEDDING, HEAD, Moment, Place, Point
from launcher.planner.sharding import alike, flat, partition
from launcher.planner.sharding.loading import quantising
from launcher.planner.sharding.tied import waiting_numel
from launcher.planner.terms import FROM_WRAP, at, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import whole_weights
from launcher.planner.workload import Workload
from launcher.spec import Offload

SOURCE = "deepspeed 0.19.8 runtime/zero/stage_1_and_2.py"

GATHERS: tuple[Point, ...] = ()  # every parameter is there
after_evaluation = alike.after_evaluation
first_steps = alike.first_steps
fullest_block = alike.fullest_block


def rank_classes(work: Workload) -> tuple[tuple[range, int], ...]:
    """Partitions are padded to equal sizes; the gradients that they touch differ a little, so the fullest counts."""
    return ((range(work.world_size), flat.fullest_rank(work.inventory, work.world_size)),)


def partition_numel(work: Workload) -> int:
    """Elements of one rank's flat partitions, padding included."""
    no_decay = flat.no_decay_numel(work.inventory)
    matrices = work.inventory.trained_numel - no_decay
    return sum(flat.partition_numel(numel, work.world_size) for numel in (matrices, no_decay))


def averaged_numel(work: Workload, rank: int) -> int:
    """Elements of all averaged gradients that a rank keeps."""
    no_decay = flat.partition_numel(flat.no_decay_numel(work.inventory), work.world_size)
    return flat.touched_numel(work.inventory, work.world_size, rank) + no_decay


def is_offloaded(work: Workload) -> bool:
    """Whether master, states and gradients are in host RAM."""
    return work.spec.shard.offload is Offload.OPTIMIZER


def terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """Weights; partition and states on the device, or on the host when offloaded."""
    on_device = (*whole_weights(work), *quantising(work), *_flattening(work), *partition.held_by_graph(work))
    if is_offloaded(work):
        return (*on_device, *_offload_buffer(work))
    numel = partition_numel(work)
    piece = flat.largest_slice_numel(work.inventory, work.world_size, rank)
    states = optimizer.states_bytes(work.spec.train.optimizer, [(numel, 1)], work.stepped_dtype)
    return (
        *on_device,
        *partition.master_weights(work, numel, f"{SOURCE} single_partition_of_fp32_groups"),
        *partition.optimizer_states(work, numel, numel),
        *_averaged(work, rank),
        *partition.stepped_gradients(work, numel, piece, f"{SOURCE} get_grad_norm_direct, step", states_bytes=states),
    )


def own_terms(work: Workload, rank: int) -> tuple[Term, ...]:
    """One class stands for all."""
    del work, rank
    return ()


def terms_at(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """The buckets, what was reduced into this rank's gradients, and the gradient just computed."""
    reduced = () if is_offloaded(work) else _reduced(work, rank, moment)
    return (*_bucket(work, moment), *reduced, *_in_flight(work, moment))


def forward_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Nothing is gathered."""
    del work, moment
    return ()


def _averaged(work: Workload, rank: int) -> tuple[Term, ...]:
    """In the optimizer's phase; with accumulation from the first backward pass on, and a second time while another
    backward pass fills its own (terms_at)."""
    numel, width = averaged_numel(work, rank), work.gradient_bytes
    accumulated = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD) if work.accumulates else ()
    return term(
        "gradients, averaged",
        TermKind.GRADIENTS,
        numel * width,
        (*accumulated, Phase.OPTIMIZER),
        formula=f"{numel:,} elements of touched parameters x {width} B",
        source=f"{SOURCE} copy_grads_in_partition, averaged_gradients",
    )


def _reduced(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """The buffer of this backward pass: allocated whole when the first of the rank's own gradients is reduced."""
    if not _has_begun(work, rank, moment):
        return ()
    numel, width = averaged_numel(work, rank), work.gradient_bytes
    return at(
        moment,
        "gradients, being averaged",
        TermKind.GRADIENTS,
        numel * width,
        formula=f"{numel:,} elements of touched parameters x {width} B",
        source=f"{SOURCE} copy_grads_in_partition",
    )


def _has_begun(work: Workload, rank: int, moment: Moment) -> bool:
    """Whether the backward pass, which goes from the end of the flat order to its beginning, has come to this rank's
    partition. Partitions of norms and biases are everywhere, and count where they are all there is."""
    if moment in (*BEFORE_GRADIENTS, HEAD):
        return False
    found = flat.ends(work.inventory)
    if not found or moment is EMBEDDING:
        return True
    end = min((rank + 1) * flat.partition_numel(found[-1], work.world_size), found[-1])
    return end > _reached(work.inventory, found[-1], moment)


def _reached(inventory: Inventory, whole: int, moment: Moment) -> int:
    """Where the first gradient begins that exists: the embedding, blocks and head lie in this order."""
    embedding = sum(p.numel for p in inventory.root.trained if is_of_embedding(p))
    tail = sum(p.numel for p in inventory.root.trained if not is_of_embedding(p))
    block = inventory.largest_block.trained_numel
    to_come = block - sum(p.numel for p in running_parts(inventory, moment))
    if moment is AFTER_HEAD:
        return whole - tail
    return embedding + to_come if moment.place is Place.FIRST else whole - tail - block + to_come


def bucket_bytes(work: Workload) -> int:
    """The contiguous gradient buckets, allocated at the first gradient of every backward pass whatever the model's
    size."""
    shard = work.spec.shard
    assert shard.reduce_bucket_size is not None
    return shard.reduce_bucket_size * work.gradient_bytes * (2 if shard.overlap_comm else 1)


def _bucket(work: Workload, moment: Moment) -> tuple[Term, ...]:
    if moment in (*BEFORE_GRADIENTS, HEAD):
        return ()
    shard = work.spec.shard
    return at(
        moment,
        "gradient buckets",
        TermKind.SHARDING_BUFFERS,
        bucket_bytes(work),
        formula=f"{shard.reduce_bucket_size:,} elements x {work.gradient_bytes} B x {2 if shard.overlap_comm else 1}",
        source=f"{SOURCE} setup_buckets",
    )


def _in_flight(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The gradient just computed; one larger than the bucket is reduced by itself. A tied head's waits."""
    waiting = waiting_numel(work.inventory, moment) if moment is not HEAD else 0
    numel = in_flight_numel(work.inventory, moment) + waiting
    return at(
        moment,
        "gradient in flight",
        TermKind.GRADIENTS,
        numel * work.gradient_bytes,
        formula=f"{numel:,} elements x {work.gradient_bytes} B",
        source=f"{SOURCE} reduce_independent_p_g_buckets_and_remove_grads",
    )


def _flattening(work: Workload) -> tuple[Term, ...]:
    """While the engine is built: the flat copy beside the trained weights, before the master exists; later the
    gradients that initialise the optimizer. Where the flat copy has no room on the device it is made in host RAM."""
    width = work.stepped_dtype.num_bytes
    flat_bytes = work.inventory.trained_numel * work.dtypes.trained.num_bytes
    zeros = 0 if is_offloaded(work) else partition_numel(work) * width
    later = staging_numel(work) * work.gradient_bytes if is_offloaded(work) else zeros
    if not _has_room(work, flat_bytes):
        flat_bytes = 0
    return term(
        "flattening",
        TermKind.SHARDING_BUFFERS,
        max(flat_bytes - later, zeros),
        (Phase.WRAP,),
        formula=f"the larger of the flat copy {flat_bytes:,} B, in the place of {later:,} B that come later,"
        f" and the master's zeros, {zeros:,} B",
        source=f"{SOURCE} flatten_dense_tensors_aligned, initialize_optimizer_states",
    )


def _has_room(work: Workload, flat_bytes: int) -> bool:
    capacity = work.spec.device.memory_bytes
    if capacity is None or not work.on_cuda:
        return True
    weights = sum(found.size_bytes for found in whole_weights(work))
    return capacity - weights >= flat_bytes


def staging_numel(work: Workload) -> int:
    """Elements of the largest parameter that is trained."""
    return max((p.numel for p, _ in work.inventory.counted() if p.state.is_trained), default=0)


def _offload_buffer(work: Workload) -> tuple[Term, ...]:
    """A staging buffer as large as the largest parameter."""
    numel = staging_numel(work)
    return term(
        "offload staging",
        TermKind.SHARDING_BUFFERS,
        numel * work.gradient_bytes,
        FROM_WRAP,
        formula=f"largest parameter, {numel:,} elements x {work.gradient_bytes} B",
        source=f"{SOURCE} temp_grad_buffer_for_gpu_offload",
    )
