"""The way in: a job and the listed cards -> MemoryPlan. Pure, and fast enough for a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.models import model_shape
from launcher.planner import disk, host
from launcher.planner.cards import smallest_card
from launcher.planner.constants import Constants
from launcher.planner.estimate import Estimator
from launcher.planner.types import MemoryPlan, Suggestion, Verdict
from launcher.spec import DeviceSpec, JobSpec

INSTRUMENT = "closed form"


def make_plan(
    spec: JobSpec, cards: Sequence[DeviceSpec], constants: Constants | None = None, *, propose: bool = True
) -> MemoryPlan:
    """Plan a job. Its micro batch is chosen where it is None: the largest that fits the device and divides a rank's
    share of the global batch; 1 where none fits or no card is named.

    cards: those to look through for the smallest that would hold a job that has no card, or does not fit its own.
    constants: with what was calibrated; those that the project ships otherwise.
    propose: look for what would make it fit, and for the smallest card, which takes dozens of plans.
    """
    estimator = Estimator(model_shape(spec.model.config), constants=constants)
    found = estimator.best(spec)
    proposed: tuple[Suggestion, ...] = ()
    if propose and found.verdict in UNSURE:
        from launcher.planner.fit import suggestions  # most plans fit and need none of it

        proposed = suggestions(estimator, spec, found)
    hopeless = propose and found.verdict is Verdict.DOES_NOT_FIT and not proposed
    wanted = found.verdict is Verdict.NO_CARD or hopeless
    worst = max(found.ranks, key=lambda rank: rank.allocated_bytes + rank.outside_bytes)
    on_host = host.host_terms(found.work, found.need.process_bytes)
    checkpoint, result = disk.checkpoint_terms(found.work), disk.result_terms(found.work)
    return MemoryPlan(
        spec=found.spec,
        instrument=INSTRUMENT,
        ranks=found.ranks,
        allocated_bytes=worst.allocated_bytes,
        reserved_bytes=found.need.reserved_bytes,
        process_bytes=found.need.process_bytes,
        process_low_bytes=found.need.low_bytes,
        process_high_bytes=found.need.high_bytes,
        least_capacity_bytes=found.need.least_bytes,
        host_ram_bytes_per_node=host.peak_bytes(on_host),
        checkpoint_bytes=disk.total_bytes(checkpoint),
        result_bytes=disk.total_bytes(result),
        capacity_bytes=spec.device.memory_bytes,
        verdict=found.verdict,
        smallest_card=smallest_card(estimator, spec, cards) if wanted else None,
        suggestions=proposed,
        host_terms=on_host,
        checkpoint_terms=checkpoint,
        result_terms=result,
    )


UNSURE = (Verdict.TOO_CLOSE, Verdict.DOES_NOT_FIT)


def equivalents(plan: MemoryPlan) -> tuple[tuple[str, ...], ...]:
    """The overrides of the suggestions that leave the training as it is, the cheapest first."""
    return tuple(found.overrides for found in plan.suggestions if not found.changes_training)


def is_close(plan: MemoryPlan) -> bool:
    """Whether the closed form cannot decide, and a trace may."""
    return plan.verdict is Verdict.TOO_CLOSE
