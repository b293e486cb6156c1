"""What ZeRO-3 has whole until its engine is there, and while it saves.

zero.Init partitions a module when it is made, and loading gathers its own parameters once more. What is made outside
it, adapters and a quantised model, is whole until the engine partitions one parameter after the other.
"""

from __future__ import annotations

from launcher.planner import quantisation
from launcher.planner.inventory import Held, State
from launcher.planner.sharding import zero3_layout as layout
from launcher.planner.sharding.loading import adapter_bytes, is_loaded_whole, whole_while_loading
from launcher.planner.sharding.order import before_blocks, groups, modules
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.spec import Offload
from launcher.units import ceil_div


def states_loaded_whole(work: Workload) -> tuple[State, ...]:
    """Whose parameters are whole until the engine is there."""
    return tuple(State) if is_loaded_whole(work) else (State.ADAPTER,)


def loading_terms(work: Workload) -> tuple[Term, ...]:
    """Loading gathers the parameters of one module at a time; adapters come when all is loaded. Saving gathers one
    parameter."""
    module = max(sum(gathered_bytes(work, p) for p in parameters) for parameters in _base_modules(work))
    adapters, again = adapter_bytes(work), _tied_partition_bytes(work)
    saved = max(_whole_bytes(work, p) for p, _ in work.inventory.counted())
    return (
        *term(
            "one whole module, or all adapters",
            TermKind.SHARDING_BUFFERS,
            0 if is_loaded_whole(work) else max(module, adapters) + again,
            (Phase.LOAD,),
            formula=f"the larger of {module:,} B and {adapters:,} B, + {again:,} B of a tied head's partition",
            source="transformers 5.23 integrations/deepspeed.py _load_state_dict_into_zero3_model; "
            f"{layout.PARTITIONS} Init._post_init_method, _allgather_params_coalesced",
        ),
        *term(
            "one whole parameter",
            TermKind.SHARDING_BUFFERS,
            saved,
            (Phase.SAVE,),
            formula=f"the largest, {saved:,} B",
            source="deepspeed 0.19.8 runtime/engine.py _zero3_consolidated_16bit_state_dict",
        ),
        *whole_while_loading(work, (Phase.LOAD,)),
    )


def converting(work: Workload, later_bytes: int) -> tuple[Term, ...]:
    """The engine partitions what is whole before it makes its buffers, which are later_bytes with the partitions."""
    whole = states_loaded_whole(work)
    keeps = work.spec.shard.offload is not Offload.ALL
    partitions = sum(layout.shard_bytes(work, state) for state in State if state not in whole) if keeps else 0
    loaded = sum(count * _whole_bytes(work, p) for p, count in work.inventory.counted(*whole))
    kept = partitions + quantisation.total_constants_bytes(work)
    most = kept + loaded + _most_partitioned_bytes(work)
    return term(
        "whole, until the engine is there",
        TermKind.SHARDING_BUFFERS,
        max(most - later_bytes, 0),
        (Phase.WRAP,),
        formula=f"{loaded:,} B whole, with partitions {most:,} B, in the place of {later_bytes:,} B that come later",
        source=f"{layout.PARTITIONS} _convert_to_zero_parameters",
    )


def _most_partitioned_bytes(work: Workload) -> int:
    """The most by which it grows: a parameter's partition, beside which it is still whole, and those made before, in
    the place of what they are of."""
    whole, keeps = states_loaded_whole(work), work.spec.shard.offload is not Offload.ALL
    most = grown = 0
    for copies, parameters in groups(work.inventory):
        before = grown
        for parameter in parameters:
            if parameter.state in whole:
                partition_bytes = _partition_bytes(work, parameter) if keeps else 0
                most = max(most, grown + partition_bytes)
                grown += partition_bytes - _whole_bytes(work, parameter)
        grown += (copies - 1) * (grown - before)
    return most


def _tied_partition_bytes(work: Workload) -> int:
    """zero.Init partitions a tied head as if it was none; the model ties it when all is loaded, and the job then
    collects that partition (jobs/model.py load_model)."""
    if not work.inventory.is_tied or is_loaded_whole(work) or work.spec.shard.offload is Offload.ALL:
        return 0
    return sum(_partition_bytes(work, p) for p in before_blocks(work.inventory))


def _base_modules(work: Workload) -> tuple[tuple[Held, ...], ...]:
    """Every kind of module with its own parameters. Of what is in no block each is a module by itself."""
    in_blocks = (module for block in work.inventory.blocks for module in modules(block))
    alone = ((p,) for p in work.inventory.root.parameters)
    return (*alone, *(tuple(p for p in module if p.state is not State.ADAPTER) for module in in_blocks))


def gathered_bytes(work: Workload, parameter: Held) -> int:
    """A parameter that is gathered by itself, with the copy of its partition where that is on the host."""
    copied = _partition_bytes(work, parameter) if work.spec.shard.offload is Offload.ALL else 0
    return _whole_bytes(work, parameter) + copied


def _whole_bytes(work: Workload, parameter: Held) -> int:
    numel, width = layout.stored(work, parameter)
    return numel * width


def _partition_bytes(work: Workload, parameter: Held) -> int:
    numel, width = layout.stored(work, parameter)
    return ceil_div(numel, work.world_size) * width
