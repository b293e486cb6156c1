"""The parameters of one rank that holds the model whole: DDP, ZeRO-2 and a single rank."""

from __future__ import annotations

from launcher.planner import quantisation
from launcher.planner.inventory import State
from launcher.planner.terms import ALWAYS, FROM_WRAP, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.shards import waits_in_host_memory

BASE_STATES = (State.TRAINED, State.FROZEN)


def whole_weights(work: Workload) -> tuple[Term, ...]:
    """Every parameter, unsharded."""
    return (*base_weights(work), *quantised_weights(work), *adapters(work))


def on_device(work: Workload) -> tuple[Phase, ...]:
    """When a rank's device holds parameters. transformers loads into host RAM, and the Trainer moves the model as it
    wraps it; only a quantised one is loaded onto the device (5.23 quantizers/quantizer_bnb_4bit.py
    update_device_map)."""
    return FROM_WRAP if work.on_cuda and not work.inventory.numel(State.QUANTISED) else ALWAYS


def base_weights(work: Workload) -> tuple[Term, ...]:
    """The model's own parameters that are not quantised."""
    terms: tuple[Term, ...] = ()
    for state in BASE_STATES:
        numel = work.inventory.numel(state)
        if numel:
            width = work.stored_dtype(state).num_bytes
            terms += term(
                f"{state} weights",
                TermKind.WEIGHTS,
                numel * width,
                on_device(work),
                formula=f"{numel:,} elements x {width} B",
                source="parameter inventory; launcher/precision.py",
            )
    return terms


def quantised_weights(work: Workload) -> tuple[Term, ...]:
    """Quantised values and their constants."""
    numel = work.inventory.numel(State.QUANTISED)
    method = work.spec.method
    is_8bit = quantisation.is_8bit(work)
    source = f"bitsandbytes 0.50 {'nn/modules.py Int8Params' if is_8bit else 'functional.py quantize_4bit'}"
    constants = "4 B a row" if is_8bit else constants_formula(double_quant=bool(method.double_quant))
    return term(
        f"{method.quant_type} weights",
        TermKind.WEIGHTS,
        quantisation.total_packed_bytes(work),
        ALWAYS,
        formula=f"{numel:,} elements" + ("" if is_8bit else " / 2"),
        source=source,
    ) + term(
        "quantisation constants",
        TermKind.WEIGHTS,
        quantisation.total_constants_bytes(work),
        ALWAYS,
        formula=constants,
        source=source,
    )


def constants_formula(*, double_quant: bool) -> str:
    """How the constants of one tensor of n elements are counted."""
    return "n/64 + 4*n/(64*256) + 1092 B a tensor" if double_quant else "4*n/64 + 64 B a tensor"


def whole_constants(work: Workload) -> tuple[Term, ...]:
    """Where parameters are split: quantisation constants are none, and every rank keeps all of them."""
    return term(
        "quantisation constants, whole",
        TermKind.WEIGHTS,
        quantisation.total_constants_bytes(work),
        FROM_WRAP if waits_in_host_memory(work.spec) else ALWAYS,
        formula=constants_formula(double_quant=bool(work.spec.method.double_quant)),
        source="bitsandbytes 0.50 nn/modules.py Params4bit.quant_state",
    )


def adapters(work: Workload) -> tuple[Term, ...]:
    """LoRA's own parameters, made where the base is."""
    numel = work.inventory.numel(State.ADAPTER)
    width = work.dtypes.trained.num_bytes
    return term(
        "LoRA adapters",
        TermKind.ADAPTERS,
        numel * width,
        on_device(work),
        formula=f"{numel:,} elements x {width} B",
        source="peft 0.21 tuners/lora/layer.py; launcher/precision.py",
    )
