"""What stands on the device while a quantised model is loaded that will be sharded."""

from __future__ import annotations

from launcher.planner import quantisation
from launcher.planner.inventory import State
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.shards import waits_in_host_memory


def whole_while_loading(work: Workload) -> tuple[Term, ...]:
    """The whole model, its quantised weights packed: without a device map transformers puts it on the current GPU
    (5.23 quantizers/quantizer_bnb_4bit.py update_device_map), and only wrapping shards it, with its adapters. On a CPU,
    too, each rank holds it. The constants stay, and are counted there."""
    if not is_loaded_whole(work):
        return ()
    packed = quantisation.total_packed_bytes(work)
    frozen = work.inventory.numel(State.FROZEN) * work.stored_dtype(State.FROZEN).num_bytes
    adapters = work.inventory.numel(State.ADAPTER) * work.stored_dtype(State.ADAPTER).num_bytes
    source = "transformers 5.23 quantizers/quantizer_bnb_4bit.py update_device_map"
    return (
        *term(
            "whole model, before it is sharded",
            TermKind.WEIGHTS,
            packed + frozen,
            (Phase.LOAD, Phase.WRAP),
            formula=f"{packed:,} B of 4-bit values + {frozen:,} B unquantised",
            source=source,
        ),
        *term(
            "whole adapters, before they are sharded",
            TermKind.ADAPTERS,
            adapters,
            (Phase.WRAP,),
            formula=f"{work.inventory.numel(State.ADAPTER):,} elements",
            source=source,
        ),
    )


def is_loaded_whole(work: Workload) -> bool:
    """Whether a device has the whole model before it is sharded."""
    return work.inventory.numel(State.QUANTISED) > 0 and not waits_in_host_memory(work.spec)
