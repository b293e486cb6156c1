"""A published ablation of one model over eight GPUs, each of its rows beside its plan."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from launcher.fitting.largest import largest_within
from launcher.planner.estimate import Estimate
from launcher.planner.sharding.zero3_gathered import KEPT
from launcher.spec import JobSpec
from launcher.units import GIB

from .planned import GB, difference, estimate, job, kinds, largest_first, training_bytes, training_phase, worst
from .printing import heading, say

ABLATION_MODEL = "deepseek-r1-distill-qwen-7b"
ABLATION_SOURCE = (
    "DeepSeek-R1-Distill-Qwen-7B with LoRA rank 8, a published ablation; its figures for eight GPUs are totals over "
    "all of them, in GB. It names neither the cards nor the length of its sequences, nor what Liger was added to."
)
EIGHT = ("gpus=8", "shard=zero3")
BASE_GB = 76.88
MICRO_BATCH_16_GB = 181.97
# What the ablation says, in GB, and what it changes; micro batch 2 unless it says 16.
ABLATION: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("one GPU", 16.64, ("gpus=1", "shard=ddp")),
    ("eight GPUs, ZeRO-3", BASE_GB, EIGHT),
    ("rank 16", 80.39, (*EIGHT, "method.rank=16")),
    ("micro batch 2 to 16", MICRO_BATCH_16_GB, (*EIGHT, "train.micro_batch=16")),
    ("bf16 to fp32", 183.06, (*EIGHT, "train.precision=fp32")),
    ("QLoRA, 4 bit", 48.83, (*EIGHT, "method=qlora")),
    ("Liger, micro batch 2", 80.62, (*EIGHT, "train.loss=fused_linear")),
    ("Liger, micro batch 16", 80.62, (*EIGHT, "train.loss=fused_linear", "train.micro_batch=16")),
)


def ablation_job(length: int, *changes: str) -> JobSpec:
    """A job of the ablation, with sequences of some length."""
    words = {"method": "lora", "method.rank": "8", "train.micro_batch": "2", "train.precision": "bf16_mixed"}
    words |= {"model": ABLATION_MODEL, "device": "a100-80g", "train.global_batch": "128"}
    words |= {"train.sequence_length": str(length)} | dict(change.split("=") for change in changes)
    return job(*(f"{key}={value}" for key, value in words.items()))


def ablation_length() -> int:
    """The length at which going from micro batch 2 to 16 adds what the ablation says: the one figure taken from it."""

    def growth(length: int) -> int:
        small, large = (estimate(ablation_job(length, *EIGHT, f"train.micro_batch={size}")) for size in (2, 16))
        return 8 * (training_bytes(large) - training_bytes(small))

    said = round((MICRO_BATCH_16_GB - BASE_GB) * GB)
    found = largest_within(growth, said, 16, 8192)
    assert found is not None, "sixteen tokens add more than the ablation says"
    return found


def ablation(console: Console) -> None:
    """Folklore beside plan for the ablation."""
    length = ablation_length()
    heading(console, "(a) An ablation", ABLATION_SOURCE)
    say(
        console,
        f"Assumed: A100 80 GB, adapters on all linear layers, activation checkpointing, sequences of {length} tokens. "
        f"The length is the one figure taken from the ablation: with it training, as planned, grows by "
        f"{MICRO_BATCH_16_GB - BASE_GB:.1f} GB from micro batch 2 to 16, too. Every other row is then the plan's own. "
        "The whole job also loads the model and evaluates, which the ablation says nothing of.",
    )
    table = Table("change", "said, GB", "training alone", "off by", "whole job", "between", "its peak in", box=None)
    reasons: list[str] = []
    base = estimate(ablation_job(length, *EIGHT))
    for name, said, changes in ABLATION:
        found = estimate(ablation_job(length, *changes))
        ranks = found.spec.world_size
        need = found.need
        low, high = (ranks * size / GB for size in (need.low_bytes, need.high_bytes))
        trained, whole = ranks * training_bytes(found) / GB, ranks * need.process_bytes / GB
        table.add_row(
            name,
            f"{said:.2f}",
            f"{trained:.2f}",
            f"{100 * (trained - said) / said:+.0f} %",
            f"{whole:.2f}",
            f"{low:.1f} to {high:.1f}",
            worst(found).peak_phase,
        )
        reasons.append(f"{name}: {_ablation_reason(found, base, said)}")
    console.print(table)
    for reason in reasons:
        say(console, reason)


def _ablation_reason(found: Estimate, base: Estimate, said: float) -> str:
    ranks = found.spec.world_size
    if found.spec == base.spec:
        parts = {kind: ranks * size for kind, size in kinds(found, training_phase(found)).items()}
        live = found.spec.shard.max_live_parameters or 0
        return (
            f"8 cards together hold {largest_first(parts, most=5)} GB. Only the weights are divided; context, NCCL, "
            f"logits, and up to {live:.0e} gathered parameters are there eight times."
        )
    if ranks == 1:
        held_here = largest_first(kinds(found, training_phase(found)))
        return f"holds {held_here} GB; {said:.2f} GB are {said * GB / GIB:.2f} GiB if GB meant 1e9."
    planned = 8 * (training_bytes(found) - training_bytes(base)) / GB
    parts = largest_first(difference(found, base, times=8)) or "no kind by more than 0.05"
    text = (
        f"beside the base training is said to change by {said - BASE_GB:+.1f} GB, and planned to by {planned:+.1f}: "
        f"{parts} GB over all cards."
    )
    kept = sum(term.size_bytes for term in worst(found).terms if term.name == KEPT)
    if not kept:
        return text
    without = 8 * (training_bytes(found) - kept * found.need.reserved_bytes // worst(found).allocated_bytes) / GB
    off = f"{100 * (without / said - 1):+.0f} %"
    return (
        f"{text} {8 * kept / GB:.1f} GB are 4-bit weights that every card keeps whole once they were gathered: "
        "bitsandbytes' nodes refer to them until the step is over, as traces of the real libraries show. Without them, "
        f"as where an engine gathers none of them, training would need {without:.1f} GB, {off}."
    )
