"""How wide the planner's interval must be: what it would have had to be on sources that it did not come from.

Each source in turn is left out. The others give, for a class of shardings, how far off a plan must be allowed to be to
take in a share of their rows, every source weighing the same; and the rows of the source left out are tried on it. The
share asked of the others is raised until those left out are covered as often as wanted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .score import Score

WANTED = 0.90
SHARES = (0.90, 0.925, 0.95, 0.975, 1.0)
CLASSES = {"none": "one rank", "ddp": "one rank", "fsdp1": "fsdp", "fsdp2": "fsdp", "zero2": "zero", "zero3": "zero"}
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A plan is off by at most `percent` of itself.

    share: of the rows that it was made from that lie inside. coverage: of the rows of sources left out in turn, each
    source weighing the same.
    """

    percent: float
    share: float
    coverage: float
    num_rows: int
    num_sources: int


def intervals(scores: Iterable[Score]) -> dict[Key, Interval]:
    """By estimator, class of shardings and what was measured; only where at least two sources have rows.

    Compiled blocks are left out: the job does not compile, and the closed form does not count what that saves.
    """
    groups: defaultdict[Key, list[Score]] = defaultdict(list)
    for score in scores:
        if not score.case.row.get("compile"):
            groups[score.estimator, CLASSES[score.sharding], score.metric.value].append(score)
    return {key: found for key, group in groups.items() if (found := interval(group)) is not None}


def covered(scores: Iterable[Score]) -> dict[tuple[str, str], tuple[int, int]]:
    """By class of shardings and what was measured: how many rows lie inside the intervals that plans print, of how
    many."""
    groups: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for score in scores:
        if score.is_covered is not None and not score.case.row.get("compile"):
            groups[CLASSES[score.sharding], score.metric.value].append(score.is_covered)
    return {key: (sum(found), len(found)) for key, found in groups.items()}


def interval(scores: Sequence[Score]) -> Interval | None:
    """The narrowest that covers what is wanted of the sources left out; the widest tried where none does."""
    by_source: defaultdict[str, list[float]] = defaultdict(list)
    for score in scores:
        by_source[score.case.group].append(needed_percent(score))
    if len(by_source) < 2:
        return None
    covering = [share for share in SHARES if left_out_coverage(by_source, share) >= WANTED]
    share = min(covering, default=SHARES[-1])
    return Interval(
        percent=bound(list(by_source.values()), share),
        share=share,
        coverage=left_out_coverage(by_source, share),
        num_rows=len(scores),
        num_sources=len(by_source),
    )


def needed_percent(score: Score) -> float:
    """How far the measurement lies from the plan, in percent of the plan."""
    return 100 * abs(score.measured_bytes - score.predicted_bytes) / score.predicted_bytes


def left_out_coverage(by_source: dict[str, list[float]], share: float) -> float:
    """The mean over sources of the share of their rows inside the bound that the others give."""
    shares = []
    for name, rows in by_source.items():
        limit = bound([values for other, values in by_source.items() if other != name], share)
        shares.append(sum(value <= limit for value in rows) / len(rows))
    return sum(shares) / len(shares)


def bound(sources: Sequence[Sequence[float]], share: float) -> float:
    """The percent within which a share of the rows lie, sources weighing the same."""
    weighted = sorted((value, 1 / len(values) / len(sources)) for values in sources for value in values)
    reached = 0.0
    for value, weight in weighted:
        reached += weight
        if reached >= share - 1e-9:
            return value
    return weighted[-1][0]
