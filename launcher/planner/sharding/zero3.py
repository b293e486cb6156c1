"""ZeRO-3: every parameter split evenly by elements, gathered layer by layer, kept as long as it is soon reused.

Source: deepspeed 0.19.8 runtime/zero/stage3.py, partition_parameters.py and partitioned_param_coordinator.py.
"""

from __future__ import annotations

from launcher.planner import optimizer, quantisation
from launcher.planner.gradients import Moment
from launcher.planner.inventory import Held, State
from launcher.planner.outside import managed_term
from launcher.planner.sharding.fsdp import KINDS, storage_bytes
from launcher.planner.terms import ALWAYS, FROM_FIRST_STEP, FROM_WRAP, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.weights import constants_formula
from launcher.planner.workload import Workload
from launcher.spec import Offload
from launcher.units import ceil_div

SOURCE = "deepspeed 0.19.8 runtime/zero/stage3.py"
PARTITIONS = "deepspeed 0.19.8 runtime/zero/partition_parameters.py"
COORDINATOR = "deepspeed 0.19.8 runtime/zero/partitioned_param_coordinator.py"
TRAINED = (State.TRAINED, State.ADAPTER)


def rank_classes(work: Workload) -> tuple[tuple[int, ...], ...]:
    """Each parameter's partitions are padded to equal sizes."""
    return (tuple(range(work.world_size)),)


def stored(work: Workload, parameter: Held) -> tuple[int, int]:
    """Elements and bytes an element as the module holds it."""
    if parameter.state is State.QUANTISED:
        width = storage_bytes(work)
        return ceil_div(quantisation.packed_bytes(parameter.numel), width), width
    return parameter.numel, work.stored_dtype(parameter.state).num_bytes


def shard_bytes(work: Workload, state: State) -> int:
    """One rank's partitions of all parameters in a state."""
    total = 0
    for parameter, count in work.inventory.counted(state):
        numel, width = stored(work, parameter)
        total += count * ceil_div(numel, work.world_size) * width
    return total


def partition_numel(work: Workload) -> int:
    """Trained elements of one rank, padding included."""
    return sum(count * ceil_div(p.numel, work.world_size) for p, count in work.inventory.counted(*TRAINED))


def sub_group_numel(work: Workload) -> int:
    """Trained elements of one rank that are stepped at a time."""
    assert work.spec.shard.sub_group_size is not None
    return min(work.spec.shard.sub_group_size, partition_numel(work))


def terms(work: Workload, rank: int, moment: Moment) -> tuple[Term, ...]:
    """Partitions, states and buffers; what is offloaded leaves the device."""
    del rank  # all ranks are alike
    offload = work.spec.shard.offload
    found = (*_constants(work), *_persistent(work), *_live(work, moment), *_reduction(work), *_one_parameter(work))
    if offload is not Offload.ALL:
        found += _shards(work)
    if offload is Offload.NONE:
        found += (*_master(work), *_optimizer_states(work), *_gradients(work), *_initialising(work), *_step(work))
    return found


def _shards(work: Workload) -> tuple[Term, ...]:
    return tuple(
        made
        for state, kind in KINDS.items()
        for made in term(
            f"{state} weights, partition",
            kind,
            shard_bytes(work, state),
            ALWAYS,
            formula=f"{work.inventory.numel(state):,} elements / {work.world_size} ranks, each tensor rounded up",
            source=PARTITIONS,
        )
    )


def _constants(work: Workload) -> tuple[Term, ...]:
    return term(
        "quantisation constants, whole",
        TermKind.WEIGHTS,
        quantisation.total_constants_bytes(work),
        ALWAYS,
        formula=constants_formula(double_quant=bool(work.spec.method.double_quant)),
        source="bitsandbytes 0.50 nn/modules.py Params4bit.quant_state",
    )


def _master(work: Workload) -> tuple[Term, ...]:
    """None where the partitions are fp32 already: then they are stepped themselves."""
    if work.dtypes.master is None:
        return ()
    numel, width = partition_numel(work), work.dtypes.master.num_bytes
    return term(
        "master weights, partition",
        TermKind.MASTER_WEIGHTS,
        numel * width,
        FROM_WRAP,
        formula=f"{numel:,} elements x {width} B",
        source=f"{SOURCE} fp32_partitioned_groups_flat",
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


def _gradients(work: Workload) -> tuple[Term, ...]:
    """The gradient partitions live in one flat buffer for the whole run."""
    numel, width = partition_numel(work), work.gradient_bytes
    return term(
        "gradients, partition",
        TermKind.GRADIENTS,
        numel * width,
        FROM_WRAP,
        formula=f"{numel:,} elements x {width} B",
        source=f"{SOURCE} grad_partitions_flat_buffer",
    )


def _initialising(work: Workload) -> tuple[Term, ...]:
    numel = sub_group_numel(work)
    return term(
        "initialising states",
        TermKind.SHARDING_BUFFERS,
        numel * work.stepped_dtype.num_bytes,
        (Phase.WRAP,),
        formula=f"largest sub-group, {numel:,} elements x {work.stepped_dtype.num_bytes} B",
        source=f"{SOURCE} initialize_optimizer_states",
    )


def _step(work: Workload) -> tuple[Term, ...]:
    """One sub-group's gradients, flattened and then cast to fp32."""
    numel, width = sub_group_numel(work), work.gradient_bytes
    factor = width + (work.stepped_dtype.num_bytes if width != work.stepped_dtype.num_bytes else 0)
    return term(
        "gradients, flat and fp32",
        TermKind.GRADIENTS,
        numel * factor,
        (Phase.OPTIMIZER,),
        formula=f"{numel:,} elements x {factor} B",
        source=f"{SOURCE} _prepare_fp32_grad_for_sub_group",
    )


def is_persistent(work: Workload, parameter: Held) -> bool:
    """Small parameters stay gathered for the whole run."""
    assert work.spec.shard.param_persistence_threshold is not None
    return stored(work, parameter)[0] <= work.spec.shard.param_persistence_threshold


def _persistent(work: Workload) -> tuple[Term, ...]:
    size = sum(
        count * stored(work, p)[0] * stored(work, p)[1]
        for p, count in work.inventory.counted()
        if is_persistent(work, p)
    )
    return term(
        "persistent parameters, whole",
        TermKind.SHARDING_BUFFERS,
        size,
        FROM_FIRST_STEP,
        formula=f"all of at most {work.spec.shard.param_persistence_threshold:,} elements",
        source=f"{PARTITIONS} ds_persist",
    )


def released_bytes(work: Workload) -> tuple[int, int]:
    """Elements and bytes of everything that is gathered and released, whole."""
    found = [(stored(work, p), count) for p, count in work.inventory.counted() if not is_persistent(work, p)]
    return sum(n * count for (n, _), count in found), sum(n * w * count for (n, w), count in found)


def live_at_loss_numel(work: Workload) -> int:
    """Elements kept gathered when the forward pass ends, because they are reused within max_reuse_distance.

    From the use of a block to its next, the rest of the forward pass and the backward pass over it are traversed:
    its elements twice, or three times when the backward pass recomputes them (__params_to_release).
    """
    assert work.spec.shard.max_reuse_distance is not None
    traversals = 3 if work.checkpointing else 2
    return min(released_bytes(work)[0], work.spec.shard.max_reuse_distance // traversals)


def _live(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Gathered parameters: those kept for reuse, the largest one in use, and those being fetched ahead."""
    shard = work.spec.shard
    assert shard.prefetch_bucket_size is not None
    total_numel, total_bytes = released_bytes(work)
    if total_numel == 0:
        return ()
    largest = max(stored(work, p)[0] for p, _ in work.inventory.counted())
    running = min(total_numel, largest + shard.prefetch_bucket_size)
    at_loss = min(total_numel, live_at_loss_numel(work) + largest)
    at_last = min(total_numel, live_at_loss_numel(work) + running)
    backward = {Moment.LAST_BLOCK: at_last, Moment.FIRST_BLOCK: running, Moment.AFTER_BLOCKS: largest}[moment]
    found: tuple[Term, ...] = ()
    for name, numel, phases in (
        ("live parameters", running, (Phase.FORWARD, Phase.EVALUATION)),
        ("live parameters around the loss", at_loss, (Phase.LOSS,)),
        ("live parameters, backward", backward, (Phase.BACKWARD,)),
    ):
        found += term(
            name,
            TermKind.SHARDING_BUFFERS,
            numel * total_bytes // total_numel,
            phases,
            formula=f"{numel:,} of {total_numel:,} elements gathered",
            source=COORDINATOR,
        )
    return found


def _reduction(work: Workload) -> tuple[Term, ...]:
    """The gradient bucket, held for the whole run; its rearranged copy for the reduce-scatter; and the gradient just
    computed."""
    assert work.spec.shard.reduce_bucket_size is not None
    bucket, width = work.spec.shard.reduce_bucket_size, work.gradient_bytes
    largest = work.inventory.largest_numel(*TRAINED)
    copied = max(bucket, largest) if work.world_size > 1 else 0
    buffers = TermKind.SHARDING_BUFFERS
    return (
        *term(
            "gradient bucket",
            buffers,
            bucket * width,
            FROM_WRAP,
            formula=f"{bucket:,} elements x {width} B",
            source=f"{SOURCE} ipg_buckets",
        ),
        *term(
            "reduce-scatter copy",
            buffers,
            copied * width,
            (Phase.BACKWARD,),
            formula=f"{copied:,} elements x {width} B",
            source="deepspeed 0.19.8 runtime/comm/coalesced_collectives.py reduce_scatter_coalesced",
        ),
        *term(
            "gradient in flight",
            TermKind.GRADIENTS,
            largest * width,
            (Phase.BACKWARD,),
            formula=f"largest parameter, {largest:,} elements x {width} B",
            source=SOURCE,
        ),
    )


def _one_parameter(work: Workload) -> tuple[Term, ...]:
    """Loading partitions one whole parameter at a time, and saving gathers one."""
    numel, width = max((stored(work, p) for p, _ in work.inventory.counted()), key=lambda held: held[0] * held[1])
    return term(
        "one whole parameter",
        TermKind.SHARDING_BUFFERS,
        numel * width,
        (Phase.LOAD, Phase.SAVE),
        formula=f"{numel:,} elements x {width} B",
        source=f"{PARTITIONS} Init; deepspeed 0.19.8 runtime/engine.py _zero3_consolidated_16bit_state_dict",
    )
