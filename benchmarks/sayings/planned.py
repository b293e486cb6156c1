"""Plans of the jobs that sayings are about, and what they are made of in GB."""

from __future__ import annotations

from launcher.assemble import assemble
from launcher.compose import make_spec
from launcher.host import Host
from launcher.models import model_shape
from launcher.paths import conf_dir
from launcher.planner.estimate import Estimate, Estimator
from launcher.planner.types import Phase, RankPlan, TermKind
from launcher.report.totals import bytes_by_kind
from launcher.spec import JobSpec

GB = 10**9
TRAINING = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)
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
