"""What people say about memory, beside what the planner says: `python benchmarks/folklore.py [--part ablation]`.

Every saying stands with its plan, and below it a line that says where the difference is, computed from the plan's own
terms. A saying that leaves out what decides (how long the sequences are, which card) is planned with what it does say;
what had to be assumed is written above its table. benchmarks/results/folklore.txt is its recorded output.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from launcher.assemble import assemble
from launcher.compose import make_spec
from launcher.fitting.largest import largest_within, longest_sequence
from launcher.host import Host
from launcher.models import model_shape
from launcher.paths import conf_dir
from launcher.planner.estimate import Estimate, Estimator
from launcher.planner.inventory import State
from launcher.planner.timing import step_time
from launcher.planner.types import Phase, RankPlan, TermKind
from launcher.report.totals import bytes_by_kind
from launcher.spec import JobSpec
from launcher.units import GIB

GB = 10**9
LINE_WIDTH = 118
# Every job is planned for the card that it names; nothing of this host is looked at.
NO_HOST = Host(
    hostname="none", num_gpus=0, gpu=None, gpu_names=(), gpu_driver=None, gpu_problem=None, num_cores=1,
    ram_total_bytes=0, ram_available_bytes=0,
)  # fmt: skip


def job(*words: str) -> JobSpec:
    """The job that words mean, as launch.py would compose it."""
    return make_spec(assemble(["mode=plan", *words], conf_dir()), NO_HOST)


def estimate(spec: JobSpec) -> Estimate:
    """Its plan, with micro batch 1 where none is named."""
    chosen = spec if spec.train.micro_batch is not None else spec.with_micro_batch(1)
    return Estimator(model_shape(spec.model.config)).estimate(chosen)


def worst(found: Estimate) -> RankPlan:
    """The rank that needs the most."""
    return max(found.ranks, key=lambda rank: rank.allocated_bytes + rank.outside_bytes)


def training_phase(found: Estimate) -> Phase:
    """The part of a step in which the worst rank has the most."""
    return max(TRAINING, key=worst(found).allocated_bytes_in)


def training_bytes(found: Estimate) -> int:
    """What the worst rank's process needs for its steps alone, neither loading nor evaluating nor saving."""
    return sum(kinds(found, training_phase(found)).values())


def kinds(found: Estimate, phase: Phase | None = None) -> dict[str, int]:
    """What the worst rank's process is made of in a phase, its peak unless one is named, by kind; the allocator's slack
    is a kind, too, in proportion to what is allocated."""
    rank = worst(found)
    when = phase or rank.peak_phase
    made = {kind.value: size for kind, size in bytes_by_kind(rank, when).items()}
    allocated = rank.allocated_bytes_in(when)
    made["allocator's slack"] = allocated * found.need.reserved_bytes // rank.allocated_bytes - allocated
    made[TermKind.OUTSIDE.value] = rank.outside_bytes
    return {kind: size for kind, size in made.items() if size}


def largest_first(sizes: dict[str, int], unit: int = GB, most: int = 4) -> str:
    """'weights 14.2, logits and loss 1.1': the largest amounts, signed where they are differences."""
    signed = any(size < 0 for size in sizes.values())
    ordered = sorted(sizes.items(), key=lambda item: -abs(item[1]))[:most]
    return ", ".join(
        f"{kind} {size / unit:{'+' if signed else ''}.1f}" for kind, size in ordered if abs(size) >= unit // 20
    )


def difference(found: Estimate, base: Estimate, times: int = 1) -> dict[str, int]:
    """By how much each kind is more than in another plan, at the peak of training."""
    here, there = kinds(found, training_phase(found)), kinds(base, training_phase(base))
    return {
        kind: times * (here.get(kind, 0) - there.get(kind, 0))
        for kind in {**here, **there}
        if here.get(kind, 0) != there.get(kind, 0)
    }


TRAINING = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)

# (a) A published ablation


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
    return (
        f"beside the base training is said to change by {said - BASE_GB:+.1f} GB, and planned to by {planned:+.1f}: "
        f"{parts} GB over all cards."
    )


# (b) The usual table

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


# (c) The usual rules

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


# Printing


def heading(console: Console, title: str, detail: str) -> None:
    """A part's title and what it is about."""
    console.print(f"\n{title}", style="bold")
    say(console, detail)


def say(console: Console, text: str) -> None:
    """A paragraph, indented, its further lines more."""
    for number, line in enumerate(_wrapped(text)):
        console.print(("  " if number == 0 else "    ") + line, highlight=False, soft_wrap=True)


def _wrapped(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > LINE_WIDTH - 4:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


PARTS: dict[str, Callable[[Console], None]] = {"ablation": ablation, "table": usual, "rules": rules}


def main() -> None:
    """Print all parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--part", choices=tuple(PARTS), help="only this one")
    part = parser.parse_args().part
    console = Console(width=LINE_WIDTH, highlight=False)
    for name in PARTS if part is None else (part,):
        PARTS[name](console)


if __name__ == "__main__":
    main()
