"""What stands on the device while a quantised model is loaded that will be sharded."""

from __future__ import annotations

from launcher.planner import quantisation
from launcher.planner.inventory import State
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload


def whole_while_loading(work: Workload) -> tuple[Term, ...]:
    """The whole model, its quantised weights packed: without a device map transformers puts it on the current GPU
    (5.23 quantizers/quantizer_bnb_4bit.py update_device_map), and only wrapping shards it. On a CPU, too, each rank
    holds it. The constants stay, and are counted there."""
    packed = quantisation.total_packed_bytes(work)
    if not packed:
        return ()
    frozen = work.inventory.numel(State.FROZEN) * work.stored_dtype(State.FROZEN).num_bytes
    return term(
        "whole model, before it is sharded",
        TermKind.WEIGHTS,
        packed + frozen,
        (Phase.LOAD, Phase.WRAP),
        formula=f"{packed:,} B of 4-bit values + {frozen:,} B unquantised",
        source="transformers 5.23 quantizers/quantizer_bnb_4bit.py update_device_map",
    )
