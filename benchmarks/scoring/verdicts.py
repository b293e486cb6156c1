"""Would the verdict have been right: on the card that the row ran on, and on the next smaller one?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from launcher.devices import listed_devices
from launcher.planner.types import Verdict
from launcher.spec import DeviceSpec

from .cases import Case, Metric
from .jobs import Job, card_of
from .score import answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """One verdict beside the truth. fits: whether the job does; on its own card it did."""

    case: Case
    sharding: str
    card: str
    is_own_card: bool
    verdict: Verdict
    fits: bool

    @property
    def outcome(self) -> str:
        """'right', 'wrong', or 'too close' where the verdict left it open."""
        if self.verdict is Verdict.TOO_CLOSE:
            return "too close"
        return "right" if (self.verdict is Verdict.FITS) is self.fits else "wrong"


def call(case: Case, job: Job) -> list[Called]:
    """The verdicts whose truth the measurement settles; none where the card is not listed.

    On a smaller card a job does not fit when its tensors alone are too large, and fits when what the process took on
    the larger one is no more than the card has. In between nobody knows.
    """
    own = card_of(case)
    if own is None:
        return []
    found = [_called(case, job, own, is_own_card=True, fits=True)]
    smaller = next_smaller(own)
    truth = settled(case, smaller) if smaller else None
    if smaller and truth is not None:
        found.append(_called(case, job, smaller, is_own_card=False, fits=truth))
    return found


def next_smaller(card: DeviceSpec) -> DeviceSpec | None:
    """The largest listed card that has less memory by more than a driver's rounding."""
    assert card.memory_bytes is not None
    smaller = [other for other in listed_devices() if (other.memory_bytes or 0) < card.memory_bytes * 95 // 100]
    return max(smaller, key=lambda other: (other.memory_bytes or 0, other.name), default=None)


def settled(case: Case, card: DeviceSpec) -> bool | None:
    """Whether the job fits a card, as far as the measurement says; None where it does not."""
    assert card.memory_bytes is not None
    sizes = {measured.metric: measured.size_bytes for measured in case.measured}
    if Metric.PROCESS in sizes and sizes[Metric.PROCESS] <= card.memory_bytes:
        return True
    if Metric.ALLOCATED in sizes and sizes[Metric.ALLOCATED] > card.memory_bytes:
        return False
    return None


def _called(case: Case, job: Job, card: DeviceSpec, *, is_own_card: bool, fits: bool) -> Called:
    asked = dataclasses.replace(job, spec=dataclasses.replace(job.spec, device=card))
    return Called(
        case=case,
        sharding=job.sharding.label,
        card=card.name,
        is_own_card=is_own_card,
        verdict=answer(asked).verdict,
        fits=fits,
    )
