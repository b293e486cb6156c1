"""The usual table: one figure for a size and a method, whatever is trained with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from launcher.fitting.largest import longest_sequence
from launcher.planner.estimate import Estimate, Estimator
from launcher.spec import JobSpec

from .planned import GB, estimate, job, kinds, largest_first
from .printing import heading, say

USUAL: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (
    ("7B QLoRA", "llama2-7b", 8, ("method=qlora",)),
    ("7B LoRA", "llama2-7b", 24, ("method=lora",)),
    ("7B full", "llama2-7b", 80, ("method=full",)),
    ("13B QLoRA", "llama2-13b", 16, ("method=qlora",)),
    ("13B LoRA", "llama2-13b", 40, ("method=lora",)),
    ("70B QLoRA", "llama2-70b", 48, ("method=qlora",)),
)
USUAL_LENGTHS = (512, 2048, 4096)


def usual_job(model: str, length: int, *changes: str) -> JobSpec:
    """A job of the usual table: one GPU, micro batch 1, everything else at its default."""
    words = ("train.micro_batch=1", "gpus=1", "shard=ddp", "device=a100-80g")
    return job(f"model={model}", f"train.sequence_length={length}", *words, *changes)


def usual(console: Console) -> None:
    """Folklore beside plan for the table that everyone copies."""
    heading(console, "(b) The usual table", "One number for a size and a method, whatever is trained with it.")
    lengths = ", ".join(f"{length:,}" for length in USUAL_LENGTHS)
    say(
        console,
        f"Assumed: Llama 2 on one GPU, bf16 mixed precision, micro batch 1, activation checkpointing, adapters of rank "
        f"16 on all linear layers; sequences of {lengths} tokens.",
    )
    table = Table("", "said, GB", *(f"plan at {length:,}" for length in USUAL_LENGTHS), "holds up to", box=None)
    reasons: list[str] = []
    for name, model, said, changes in USUAL:
        found = [estimate(usual_job(model, length, *changes)) for length in USUAL_LENGTHS]
        spec = found[0].spec
        card = dataclasses.replace(spec.device, name=f"{said} GB", memory_bytes=said * GB)
        on_card = estimate(dataclasses.replace(spec, device=card))
        longest = longest_sequence(Estimator(on_card.work.shape), on_card) if on_card.fits else None
        needs = (f"{one.need.process_bytes / GB:.1f}" for one in found)
        table.add_row(name, str(said), *needs, f"{longest:,} tokens" if longest else "nothing")
        reasons.append(f"{name}: {_usual_reason(found[0], found[-1], said, changes)}")
    console.print(table)
    for reason in reasons:
        say(console, reason)


def _usual_reason(short: Estimate, long: Estimate, said: int, changes: Sequence[str]) -> str:
    per_token = (long.need.process_bytes - short.need.process_bytes) / (long.work.tokens - short.work.tokens)
    text = f"{largest_first(kinds(short))} GB; each further token takes {per_token / 1e6:.2f} MB"
    if "method=full" in changes:
        numel = short.work.inventory.trained_numel
        pure = estimate(usual_job(short.spec.model.name, USUAL_LENGTHS[0], *changes, "train.precision=bf16_pure"))
        held = sum(kinds(short).get(kind, 0) for kind in ("weights", "gradients", "optimizer states"))
        text += (
            f". fp32 weights, gradients and two states are {held / numel:.0f} B a parameter; {said} GB allow "
            f"{said * GB / numel:.1f}. Pure bf16 needs {pure.need.process_bytes / GB:.1f} GB"
        )
    high = short.need.high_bytes / GB
    return f"{text}. At {USUAL_LENGTHS[0]} tokens the plan is sure of {high:.1f} GB at most."
