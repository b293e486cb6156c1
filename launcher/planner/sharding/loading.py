"""What stands on the device while a quantised model is loaded, and, where it will be sharded, until it is."""

from __future__ import annotations

from launcher.models import Role
from launcher.planner import quantisation
from launcher.planner.inventory import Held, State
from launcher.planner.sharding.order import after_blocks
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.shards import waits_in_host_memory

PLACED = "transformers 5.23 quantizers/quantizer_bnb_4bit.py update_device_map"


def quantising(work: Workload) -> tuple[Term, ...]:
    """transformers copies one tensor after the other to the device and quantises it there, sorted by their names
    (core_model_loading.py convert_and_load_state_dict_in_model). The highest is in the last layer: a tensor as it was
    read, with all but what comes after it, the adapters among that; alone, with what it becomes, where the others wait
    in host RAM. On a CPU what is read is part of the file."""
    if not work.inventory.numel(State.QUANTISED) or not work.on_cuda:
        return ()
    waits = waits_in_host_memory(work.spec)
    layer = sorted((p for p in work.inventory.blocks[-1].parameters if p.role is not Role.ADAPTER), key=_name)
    later = 0
    if not waits:
        norms = (p for p in after_blocks(work.inventory) if p.role is Role.NORM)
        later = adapter_bytes(work) + sum(_loaded_bytes(work, p) for p in norms)
    most, formula = 0, ""
    for parameter in reversed(layer):
        if parameter.state is State.QUANTISED:
            read = parameter.numel * work.stored_dtype(State.FROZEN).num_bytes
            scratch = quantisation.scratch_bytes(work, parameter.numel)
            if waits:
                scratch += _loaded_bytes(work, parameter)
            if read + scratch - later > most:
                most = read + scratch - later
                formula = f"{read:,} B as read + {scratch:,} B of scratch, in the place of {later:,} B loaded later"
        later += 0 if waits else _loaded_bytes(work, parameter)
    return term(
        "weight being quantised",
        TermKind.WEIGHTS,
        most,
        (Phase.LOAD,),
        formula=formula,
        source="transformers 5.23 core_model_loading.py; bitsandbytes 0.50 nn/modules.py _quantize",
    )


def _name(parameter: Held) -> str:
    return parameter.name


def _loaded_bytes(work: Workload, parameter: Held) -> int:
    if parameter.state is not State.QUANTISED:
        return parameter.numel * work.stored_dtype(parameter.state).num_bytes
    constants_bytes = quantisation.tensor_constants_bytes(work, parameter)
    return quantisation.tensor_packed_bytes(work, parameter) + constants_bytes


def whole_while_loading(work: Workload, phases: tuple[Phase, ...] = (Phase.LOAD, Phase.WRAP)) -> tuple[Term, ...]:
    """The whole model, its quantised weights packed: without a device map transformers puts it on the current GPU, and
    only wrapping shards it, with its adapters. On a CPU, too, each rank holds it. The constants stay, and are counted
    there."""
    if not is_loaded_whole(work):
        return ()
    packed = quantisation.total_packed_bytes(work)
    frozen = work.inventory.numel(State.FROZEN) * work.stored_dtype(State.FROZEN).num_bytes
    return (
        *term(
            "whole model, before it is sharded",
            TermKind.WEIGHTS,
            packed + frozen,
            phases,
            formula=f"{packed:,} B of 4-bit values + {frozen:,} B unquantised",
            source=PLACED,
        ),
        *term(
            "whole adapters, before they are sharded",
            TermKind.ADAPTERS,
            adapter_bytes(work),
            phases,
            formula=f"{work.inventory.numel(State.ADAPTER):,} elements",
            source=PLACED,
        ),
        *quantising(work),
    )


def adapter_bytes(work: Workload) -> int:
    """Adapters, whole."""
    return work.inventory.numel(State.ADAPTER) * work.dtypes.trained.num_bytes


def is_loaded_whole(work: Workload) -> bool:
    """Whether a device has the whole model before it is sharded."""
    return work.inventory.numel(State.QUANTISED) > 0 and not waits_in_host_memory(work.spec)
