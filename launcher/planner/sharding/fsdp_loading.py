"""What FSDP2 passes through the device while a model is split, and while it is saved."""

from __future__ import annotations

import math
from collections.abc import Iterable

from launcher.planner.inventory import Held, State
from launcher.planner.sharding import rows
from launcher.planner.sharding.loading import is_loaded_whole, quantising, whole_while_loading
from launcher.planner.sharding.order import before_blocks, groups
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.shards import waits_in_host_memory
from launcher.spec import Offload


def loading_terms(work: Workload) -> tuple[Term, ...]:
    """What passes through the device while it is sharded, and while it is saved. A quantised model on a CPU is whole
    there already, until the wrapped one has taken its place."""
    gathered = _gathered_bytes(work)
    return (
        *(_group(work) if waits_in_host_memory(work.spec) else _parameter(work)),
        *term(
            "one whole parameter, to save it",
            TermKind.SHARDING_BUFFERS,
            gathered,
            (Phase.SAVE,),
            formula=f"the largest, {gathered:,} B: padded, and its own shard again where it is offloaded",
            source="torch 2.13 distributed/checkpoint/state_dict.py",
        ),
        *whole_while_loading(work),
    )


def _parameter(work: Workload) -> tuple[Term, ...]:
    """Wrapping passes one parameter after the other through the device."""
    most = _most_bytes(work)
    shards = sum(rows.shard_bytes(work, state) for state in State) if _keeps_shards(work) else 0
    return term(
        "one parameter, while it is sharded",
        TermKind.SHARDING_BUFFERS,
        max(most - shards, 0),
        (Phase.WRAP,),
        formula=f"{most:,} B with its shard and those before, in the place of {shards:,} B of all shards",
        source="accelerate 1.15 utils/fsdp_utils.py fsdp2_load_full_state_dict; "
        "torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param.py _init_sharded_param",
    )


def _most_bytes(work: Workload) -> int:
    """The most that stands while parameters are sharded in their order: one, whole unless the model is, beside its
    shard and those before it. A tied embedding comes a second time as the head, with a shard of its own. Of like
    blocks the last stands highest. Shards that the host is to have leave the device one by one."""
    is_whole, keeps = is_loaded_whole(work), _keeps_shards(work)
    tied = before_blocks(work.inventory) if work.inventory.is_tied and not is_whole else ()
    most = before = 0
    for copies, parameters in (*groups(work.inventory), (1, tied)):
        sizes = [(_shard_bytes(work, p), 0 if is_whole else _whole_bytes(work, p)) for p in parameters]
        if keeps:
            before += (copies - 1) * sum(shard for shard, _ in sizes)
        for shard, whole in sizes:
            most = max(most, before + shard + whole)
            before += shard if keeps else 0
    return most


def _group(work: Workload) -> tuple[Term, ...]:
    """A quantised model that waits in host RAM comes to the device group by group, each whole before it is split, the
    blocks first. The embedding and the head come last and stay whole until both are split: accelerate has them in
    variables (input_weight, output_weight). An offloaded shard leaves the device at once."""
    root = work.inventory.root.parameters
    block = max(_sum(work, block.parameters) for block in work.inventory.blocks)
    shards = [_shard_bytes(work, p) for p in root]
    later, leaving = (sum(shards), 0) if _keeps_shards(work) else (0, max(shards))
    ends = _sum(work, root)
    return (
        *term(
            "one whole group, before it is sharded",
            TermKind.SHARDING_BUFFERS,
            max(block - later, ends + leaving),
            (Phase.WRAP,),
            formula=f"the larger of a block, {block:,} B - {later:,} B of shards that are not there yet, and of"
            f" embedding and head, {ends:,} B + {leaving:,} B of a shard that leaves",
            source="torch 2.13 distributed/fsdp/_fully_shard/_fsdp_init.py _move_states_to_device; accelerate 1.15"
            " utils/fsdp_utils.py fsdp2_prepare_model; jobs/waiting.py",
        ),
        *quantising(work),
    )


def _gathered_bytes(work: Workload) -> int:
    """The largest parameter as saving gathers it: the padded shards of all ranks; an offloaded one is on the device
    again for that."""
    shards = work.world_size if _keeps_shards(work) else work.world_size + 1
    return shards * max(_shard_bytes(work, p) for p, _ in work.inventory.counted())


def _keeps_shards(work: Workload) -> bool:
    return work.spec.shard.offload is not Offload.ALL


def _sum(work: Workload, parameters: Iterable[Held]) -> int:
    return sum(_whole_bytes(work, p) for p in parameters)


def _whole_bytes(work: Workload, parameter: Held) -> int:
    shape, width = rows.stored(work, parameter)
    return math.prod(shape) * width


def _shard_bytes(work: Workload, parameter: Held) -> int:
    shape, width = rows.stored(work, parameter)
    return rows.padded_numel(shape, work.world_size) * width
