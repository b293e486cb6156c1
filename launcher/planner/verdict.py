"""From allocated bytes to a verdict: what the process will take, how sure that is, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planner.constants import Constants, Key, listed_constants
from launcher.planner.types import RankPlan, Verdict
from launcher.spec import JobSpec, ShardKind

# Reserved over allocated with expandable segments. ZeRO-2 and ZeRO-3: replay of the CUDA caching allocator's rules on
# a traced 8B job over 8 ranks (39.6 of 33.8 GiB, 25.7 of 23.9 GiB). The rest is assumed, from the 1.00-1.05 that
# public ZeRO-2 and single-GPU runs report; FSDP2's cache may grow further where there is room, and shrinks under need.
RESERVED_PERCENT = {
    ShardKind.DDP: 103,
    ShardKind.FSDP: 108,
    ShardKind.ZERO2: 117,
    ShardKind.ZERO3: 108,
}

# How far the allocated bytes may be off, in percent of them; the bounds also take in the allocator's slack.
# One rank: 57 public measurements on one GPU (LoRA, QLoRA and full, 1.1B to 7B; the loss and the optimizer of their
# library versions put in, Liger and fused kernels as their formulas say) are met with a median error of 1.6 %, a
# mean of 2.7 % and a worst of 10.5 %; 56 of them within 10 %.
# Sharded: no public measurement of these versions is fully specified. Real runs of the job on two CPU ranks were off by
# -8 to +11 %, and one ZeRO-3 LoRA run by +21 %, where a tiny model was planned as wholly gathered and was not.
INTERVAL_PERCENT = {
    ShardKind.DDP: 10,
    ShardKind.FSDP: 15,
    ShardKind.ZERO2: 15,
    ShardKind.ZERO3: 15,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What the worst rank takes of its device, with bounds."""

    reserved_bytes: int
    process_bytes: int
    low_bytes: int
    high_bytes: int


def need(spec: JobSpec, rank: RankPlan, constants: Constants | None = None) -> Need:
    """The process's size on the device: allocated, the allocator's slack, and what lies outside it.

    A CPU has no caching allocator, but glibc keeps most of what is freed in pieces below 32 MiB.
    """
    allocated, outside = rank.allocated_bytes, rank.outside_bytes
    if spec.device.kind == "cuda":
        slack_percent = RESERVED_PERCENT[spec.shard.kind]
    else:
        slack_percent = (constants or listed_constants()).get(Key.CPU_SLACK, spec.device).amount
    reserved = allocated * slack_percent // 100
    interval = INTERVAL_PERCENT[spec.shard.kind]
    return Need(
        reserved_bytes=reserved,
        process_bytes=reserved + outside,
        low_bytes=allocated * (100 - interval) // 100 + outside,
        high_bytes=reserved * (100 + interval) // 100 + outside,
    )


def verdict(found: Need, capacity_bytes: int | None) -> Verdict:
    """Fits when even the high bound does; does not when even the low bound does not."""
    if capacity_bytes is None:
        return Verdict.NO_CARD
    if found.high_bytes <= capacity_bytes:
        return Verdict.FITS
    return Verdict.DOES_NOT_FIT if found.low_bytes > capacity_bytes else Verdict.TOO_CLOSE
