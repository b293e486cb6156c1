"""What FSDP2 passes through the device while a model is split, and while it is saved."""

from __future__ import annotations

from launcher.planner.inventory import Held, State
from launcher.planner.sharding import rows
from launcher.planner.sharding.loading import is_loaded_whole, whole_while_loading
from launcher.planner.sharding.order import before_blocks, groups
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.spec import Offload


def loading_terms(work: Workload) -> tuple[Term, ...]:
    """Wrapping passes one parameter after the other through the device, and saving gathers them. A quantised model is
    whole on the device already, until the wrapped one has taken its place."""
    most = _most_bytes(work)
    shards = sum(rows.shard_bytes(work, state) for state in State) if _keeps_shards(work) else 0
    largest = max(_whole_bytes(work, p) for p, _ in work.inventory.counted() if p.state is not State.QUANTISED)
    return (
        *term(
            "one parameter, while it is sharded",
            TermKind.SHARDING_BUFFERS,
            max(most - shards, 0),
            (Phase.WRAP,),
            formula=f"{most:,} B with its shard and those before, in the place of {shards:,} B of all shards",
            source="accelerate 1.15 utils/fsdp_utils.py fsdp2_load_full_state_dict; "
            "torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param.py _init_sharded_param",
        ),
        *term(
            "one whole parameter, to save it",
            TermKind.SHARDING_BUFFERS,
            largest,
            (Phase.SAVE,),
            formula=f"the largest, {largest:,} B",
            source="torch 2.13 distributed/checkpoint/state_dict.py",
        ),
        *whole_while_loading(work),
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


def _keeps_shards(work: Workload) -> bool:
    return work.spec.shard.offload is not Offload.ALL


def _whole_bytes(work: Workload, parameter: Held) -> int:
    return parameter.numel * rows.stored(work, parameter)[1]


def _shard_bytes(work: Workload, parameter: Held) -> int:
    shape, width = rows.stored(work, parameter)
    return rows.padded_numel(shape, work.world_size) * width
