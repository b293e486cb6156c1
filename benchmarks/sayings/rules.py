"""The rules of thumb that fit into a line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from launcher.planner.estimate import Estimate
from launcher.planner.inventory import State
from launcher.planner.timing import step_time
from launcher.planner.types import Phase, TermKind
from launcher.report.totals import bytes_by_kind
from launcher.spec import JobSpec

from .planned import GB, difference, estimate, job, kinds, largest_first, worst
from .printing import heading, say

RULE_MODEL = "qwen2.5-7b"


def rule_job(*changes: str, length: int = 2048) -> JobSpec:
    """A job of the usual rules: Qwen2.5-7B on one card, micro batch 1."""
    words = {"model": RULE_MODEL, "train.sequence_length": str(length), "train.micro_batch": "1", "gpus": "1"}
    words |= {"shard": "ddp", "device": "a100-80g", "method": "full"} | dict(change.split("=") for change in changes)
    return job(*(f"{key}={value}" for key, value in words.items()))


def rules(console: Console) -> None:
    """The sayings that fit into a line."""
    heading(console, "(c) The usual rules", f"Planned for {RULE_MODEL} on one A100 80 GB, micro batch 1, 2,048 tokens.")
    for rule in (full_rule, optimizer_rule, checkpointing_rule, thousand_tokens_rule, margin_rule):
        said, lines = rule()
        console.print(f"\n  {said}", style="bold")
        for line in lines:
            say(console, line)


Rule = tuple[str, Sequence[str]]


def full_rule() -> Rule:
    """Full fine-tuning as a multiple of the weights."""
    return "full = weights x (1 + 2 + 2 + activations)", [
        f"{precision}: {_multiples(estimate(rule_job(f'train.precision={precision}')))}"
        for precision in ("bf16_mixed", "bf16_pure", "fp32")
    ]


def _multiples(found: Estimate) -> str:
    """The kinds as multiples of the weights in bf16."""
    weights = 2 * found.work.inventory.numel(State.TRAINED)
    made = kinds(found)
    names = ("weights", "gradients", "optimizer states", "activations", "logits and loss")
    known = ", ".join(f"{name} {made.get(name, 0) / weights:.2f}" for name in names)
    rest = sum(size for name, size in made.items() if name not in names)
    phase = worst(found).peak_phase
    total = found.need.process_bytes / weights
    return f"in bf16 weights, at the peak in {phase}: {known}, the rest {rest / weights:.2f}; together {total:.1f}."


def optimizer_rule() -> Rule:
    """Optimizer states as a multiple of the weights."""
    lines = []
    for changes in (
        ("train.precision=bf16_mixed",),
        ("train.precision=bf16_pure",),
        ("train.precision=bf16_mixed", "train.optimizer=adamw_8bit"),
        ("method=lora", "train.precision=bf16_mixed"),
    ):
        found = estimate(rule_job(*changes))
        states = sum(t.size_bytes for t in worst(found).terms if t.kind is TermKind.OPTIMIZER_STATES)
        weights = 2 * found.work.shape.num_parameters
        trained = found.work.inventory.trained_numel
        lines.append(
            f"{' '.join(changes)}: {states / weights:.2f} x the weights in bf16 ({states / trained:.2f} B for each of "
            f"{trained / 1e9:.2f}e9 trained parameters)."
        )
    return "the optimizer = 3 to 4 x the weights", lines


def checkpointing_rule() -> Rule:
    """What activation checkpointing leaves, and what it costs."""
    lines = []
    for method in ("full", "lora"):
        for length in (2048, 8192):
            kept, recomputed = (
                estimate(rule_job(f"method={method}", f"train.activation_checkpointing={word}", length=length))
                for word in ("none", "full")
            )
            left = 100 * held(recomputed) / held(kept)
            slower = 100 * (step_time(recomputed.work).seconds / step_time(kept.work).seconds - 1)
            lines.append(
                f"{method}, {length:,} tokens: {left:.0f} % of the activations are left ({held(kept) / GB:.1f} to "
                f"{held(recomputed) / GB:.1f} GB), for {slower:.0f} % more time."
            )
    lines.append(
        "The time is estimated: the blocks' forward pass once more is 2 operations a parameter on top of 6, or of 4 "
        "where the weights are frozen. huggingface.co/docs/transformers/en/grad_checkpointing says about 20 %."
    )
    return "checkpointing = 30 % of the activations for 20 % of the time", lines


def held(found: Estimate) -> int:
    """The activations of the worst rank where it has most of them."""
    return max(bytes_by_kind(worst(found), phase).get(TermKind.ACTIVATIONS, 0) for phase in Phase)


def thousand_tokens_rule() -> Rule:
    """What a thousand tokens take."""
    lines = []
    for changes in (
        ("train.activation_checkpointing=none",),
        ("train.activation_checkpointing=full",),
        ("train.activation_checkpointing=full", "train.loss=chunked"),
    ):
        short, long = (estimate(rule_job("method=lora", *changes, length=length)) for length in (4096, 8192))
        grown = {kind: size * 1024 // 4096 for kind, size in difference(long, short).items()}
        total = (long.need.process_bytes - short.need.process_bytes) * 1024 / 4096
        lines.append(
            f"{' '.join(('method=lora', *changes))}: {total / GB:.2f} GB for 1,024 tokens, the peak being in "
            f"{worst(long).peak_phase} ({largest_first(grown) or 'hardly any'})."
        )
    return "1K tokens = 2.5 GB on Qwen2.5-7B", lines


def margin_rule() -> Rule:
    """What to leave free."""
    lines = []
    for changes in ((), ("gpus=8", "shard=fsdp"), ("gpus=8", "shard=zero3")):
        found = estimate(rule_job("method=lora", *changes))
        rank, need = worst(found), found.need
        slack = need.reserved_bytes - rank.allocated_bytes
        unsure = 100 * (need.high_bytes - need.process_bytes) / need.process_bytes
        lines.append(
            f"{' '.join(('method=lora', *changes))}: what such a margin is for is in the plan itself, "
            f"{100 * slack / rank.allocated_bytes:.0f} % of what is allocated for the caching allocator and "
            f"{rank.outside_bytes / GB:.1f} GB outside it; beyond that it leaves {unsure:.0f} % for doubt."
        )
    return "a margin of 20 to 30 %", lines
