"""Whether the disk has room for what a run will write, and the host RAM for what it holds, asked before it starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import DoesNotFit
from launcher.planner.types import MemoryPlan
from launcher.units import MIB, format_bytes

# Tokenizer, random states, logs and the files' own headers, which the plan does not count; and a tenth of the rest.
UNCOUNTED_BYTES = 256 * MIB
MARGIN_PERCENT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """What a run writes: checkpoints that stand side by side, and the result. num_checkpoints counts those that it
    writes of its own accord, num_at_most also the one that a stop leaves."""

    checkpoint_bytes: int
    result_bytes: int
    num_checkpoints: int
    num_at_most: int

    @property
    def least_bytes(self) -> int:
        """What it writes in any case."""
        return self.num_checkpoints * self.checkpoint_bytes + self.result_bytes

    @property
    def most_bytes(self) -> int:
        """What it may write, with what is not counted: a run that was stopped and goes on leaves a result, too."""
        counted = self.num_at_most * self.checkpoint_bytes + self.result_bytes
        return counted * (100 + MARGIN_PERCENT) // 100 + UNCOUNTED_BYTES


def disk_need(plan: MemoryPlan) -> DiskNeed:
    """What the planned job writes. A new checkpoint is complete before the oldest one is deleted."""
    train = plan.spec.train
    every, last = train.save_every_steps, train.max_steps
    if every is None:
        planned = 0
    else:
        planned = train.keep_checkpoints + 1
        if last is not None:
            planned = min(planned, max(0, last - 1) // every)  # after the last step the result is saved instead
    return DiskNeed(
        checkpoint_bytes=plan.checkpoint_bytes,
        result_bytes=plan.result_bytes,
        num_checkpoints=planned,
        num_at_most=max(1, planned),
    )


def free_bytes(path: Path) -> int:
    """Free space for this user where `path` is, or would be made."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def check_disk(need: DiskNeed, runs_dir: Path, free: int, *, refuse: bool = True) -> str:
    """A warning for the user, '' where there is room. Raises DoesNotFit where there cannot be, unless told not to."""
    what = f"{runs_dir} has {format_bytes(free)} free, and {_words(need)}"
    if need.least_bytes > free:
        if refuse:
            raise DoesNotFit(
                f"the run does not fit the disk: {what}; nothing was started (runs_dir=DIR for another disk, "
                "train.keep_checkpoints, or fit=warn to start it all the same)"
            )
        return f"the run does not fit the disk: {what}"
    return f"the disk may be too small: {what}" if need.most_bytes > free else ""


def check_host_ram(plan: MemoryPlan, available_bytes: int) -> str:
    """A warning where the host has less RAM than the plan needs of it, '' where it has enough. On CPU ranks it is what
    the plan's verdict was about already."""
    if plan.spec.device.kind == "cpu" or plan.host_ram_bytes_per_node <= available_bytes:
        return ""
    needed = format_bytes(plan.host_ram_bytes_per_node)
    largest = max(plan.host_terms, key=lambda term: term.size_bytes, default=None)
    what = "" if largest is None else f", most of it for '{largest.name}' ({format_bytes(largest.size_bytes)})"
    return (
        f"the host may run out of RAM: {format_bytes(available_bytes)} are available and up to {needed} are "
        f"needed{what}; plan.explain=true shows every part"
    )


def _words(need: DiskNeed) -> str:
    result = f"the result takes {format_bytes(need.result_bytes)}"
    each = format_bytes(need.checkpoint_bytes)
    if need.num_checkpoints == 0:
        return f"{result}, a checkpoint, should the run be stopped, {each}"
    return f"{result} and {need.num_checkpoints} checkpoints side by side {each} each"
