"""What the plan says is to be asked of Slurm: memory for the ranks, and time before the limit to save in."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.models import model_shape
from launcher.planner.estimate import Estimator
from launcher.planner.timing import step_time
from launcher.planner.types import MemoryPlan
from launcher.rules.cluster import MOST_LEAD_S
from launcher.units import GIB, ceil_div, format_bytes, format_duration, round_up

# man sbatch, --signal: it may be sent up to 60 seconds earlier than asked for, and so later than it ought to.
SLURM_EARLY_S = 60
# A shared file system that others write to as well, and the sha256 of what was written, which reads it once more.
# Assumed; cluster.lead_s is for sites that are slower.
SAVED_BYTES_PER_S = 200_000_000
SAVE_FACTOR = 2
# The estimate of a step takes kernels at their usual share of a card's peak: a slow one takes a few times as long.
STEP_FACTOR = 3
LEAST_LEAD_S = 120
# A short job trains at least half of its time.
MOST_OF_LIMIT = 2

# The plan counts processes and what they hold; torchrun, the node's agent and shared memory between ranks come on
# top, and a job that Slurm kills for its memory is lost, while what it asks too much costs little.
MEMORY_ROOM_PERCENT = 25
MEMORY_ROOM_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """memory_bytes_per_node: 0 is all of a node. lead_s: before the time limit; the words say where they are from."""

    memory_bytes_per_node: int
    memory_words: str
    lead_s: int
    lead_words: str


def asked_of_slurm(plan: MemoryPlan) -> Asked:
    """What the job asks, from the plan where the user leaves it open."""
    slurm = plan.spec.cluster.slurm
    assert slurm is not None, "only a job for Slurm asks it for anything"
    memory, lead = slurm.memory_bytes_per_node, slurm.lead_s
    auto_lead = _planned_lead(plan) if lead is None else (lead, "as asked for")
    return Asked(
        memory_bytes_per_node=planned_memory_bytes(plan) if memory is None else memory,
        memory_words=f"{format_bytes(_needed_bytes(plan))} planned, with room" if memory is None else "as asked for",
        lead_s=auto_lead[0],
        lead_words=auto_lead[1],
    )


def planned_memory_bytes(plan: MemoryPlan) -> int:
    """A node's memory limit, in whole GiB: what the plan needs at most, and room."""
    return round_up(_needed_bytes(plan) * (100 + MEMORY_ROOM_PERCENT) // 100 + MEMORY_ROOM_BYTES, GIB)


def _needed_bytes(plan: MemoryPlan) -> int:
    """Host RAM of a node. CPU ranks live in it: they count at their high bound."""
    needed = plan.host_ram_bytes_per_node
    if plan.spec.device.kind == "cpu":
        needed += plan.spec.gpus_per_node * (plan.process_high_bytes - plan.process_bytes)
    return needed


def lead_seconds(*, step_s: float, checkpoint_bytes: int, time_limit_s: int) -> int:
    """Seconds before the time limit at which the ranks are asked to stop.

    They end their step, save, and Slurm may be early or late. Never more than half of the limit.
    """
    save_s = SAVE_FACTOR * checkpoint_bytes / SAVED_BYTES_PER_S
    wanted = SLURM_EARLY_S + STEP_FACTOR * step_s + save_s
    rounded = ceil_div(int(wanted) + 1, 10) * 10
    return min(max(LEAST_LEAD_S, rounded), time_limit_s // MOST_OF_LIMIT, MOST_LEAD_S)


def _planned_lead(plan: MemoryPlan) -> tuple[int, str]:
    slurm = plan.spec.cluster.slurm
    assert slurm is not None, "only a job for Slurm has a time limit"
    step_s = step_time(Estimator(model_shape(plan.spec.model.config)).workload(plan.spec)).seconds
    limit_s = slurm.time_min * 60
    lead_s = lead_seconds(step_s=step_s, checkpoint_bytes=plan.checkpoint_bytes, time_limit_s=limit_s)
    words = (
        f"{SLURM_EARLY_S} s that Slurm may be off, {STEP_FACTOR} steps of about {format_duration(step_s)}, and "
        f"{format_bytes(plan.checkpoint_bytes)} saved at {SAVED_BYTES_PER_S // 1_000_000} MB/s, twice over"
    )
    if lead_s == limit_s // MOST_OF_LIMIT:
        return lead_s, f"{words}; but half of the time at most"
    return lead_s, f"{words}; but {LEAST_LEAD_S} s at least" if lead_s == LEAST_LEAD_S else words
