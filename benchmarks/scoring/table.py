"""Scores as tables for people, as Markdown and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .cases import Metric
from .coverage import covered, intervals
from .score import OURS, REPLAYED, Score, Skipped, Summary, summarise
from .verdicts import Called

COLUMNS = ("rows", "median (signed)", "median", "mean", "p95", "worst")
OWN = (OURS, REPLAYED)
Key = tuple[str, ...]


def grouped(scores: Iterable[Score], key: Callable[[Score], Key]) -> dict[Key, Summary]:
    """A summary for each key, in the order in which keys first occur."""
    groups: defaultdict[Key, list[Score]] = defaultdict(list)
    for score in scores:
        groups[key(score)].append(score)
    return {name: summarise(group) for name, group in groups.items()}


def by_source(score: Score) -> Key:
    """Where it was published, what was measured, and who answered."""
    return (score.case.group, score.metric.value, score.estimator)


def by_cell(score: Score) -> Key:
    """Method and sharding, what was measured, and who answered."""
    return (score.method, score.sharding, score.metric.value, score.estimator)


def by_estimator(score: Score) -> Key:
    """Who answered, and what was measured."""
    return (score.estimator, score.metric.value)


def numbers(summary: Summary) -> tuple[str, ...]:
    """The columns of one summary."""
    percents = (summary.median, summary.mean, summary.p95, summary.worst)
    return (str(summary.count), f"{summary.median_signed:+.1f} %", *(f"{value:.1f} %" for value in percents))


def print_tables(
    console: Console, scores: Sequence[Score], skipped: Sequence[Skipped], called: Sequence[Called]
) -> None:
    """Everything, for a terminal."""
    ours = [score for score in scores if score.estimator in OWN]
    _print(console, "By source", ("source", "measured", "by"), grouped(ours, by_source))
    _print(console, "By method and sharding", ("method", "sharding", "measured", "by"), grouped(ours, by_cell))
    for title, head_to_head in comparisons(scores):
        _print(console, title, ("estimator", "measured"), head_to_head)
    _print_verdicts(console, called)
    _print_skipped(console, skipped)


def print_intervals(console: Console, scores: Sequence[Score]) -> None:
    """How far off plans must be allowed to be, by estimator, class of shardings and what was measured."""
    table = Table(title="Intervals, sources left out in turn", title_justify="left", box=None, pad_edge=False)
    for name in ("estimator", "sharding", "measured"):
        table.add_column(name)
    for name in ("sources", "rows", "within", "of rows", "of the source left out"):
        table.add_column(name, justify="right")
    for key, found in intervals(scores).items():
        table.add_row(
            *key,
            str(found.num_sources),
            str(found.num_rows),
            f"{found.percent:.1f} %",
            f"{found.share:.1%}",
            f"{found.coverage:.0%}",
        )
    console.print(table)
    console.print()
    table = Table(title="Inside the intervals that plans print", title_justify="left", box=None, pad_edge=False)
    for name in ("sharding", "measured", "rows", "inside"):
        table.add_column(name, justify="right" if name in ("rows", "inside") else "left")
    for (sharding, metric), (inside, rows) in covered(scores).items():
        table.add_row(sharding, metric, str(rows), f"{inside} ({inside / rows:.0%})")
    console.print(table)


def comparisons(scores: Sequence[Score]) -> list[tuple[str, dict[Key, Summary]]]:
    """Each other estimator beside ours on the rows that it can do."""
    found = []
    for name in dict.fromkeys(score.estimator for score in scores if score.estimator not in OWN):
        theirs = {(score.case.id, score.metric): score for score in scores if score.estimator == name}
        both = [*theirs.values(), *(s for s in scores if s.estimator in OWN and (s.case.id, s.metric) in theirs)]
        found.append((f"beside {name}", grouped(both, by_estimator)))
    return found


def markdown(scores: Sequence[Score], skipped: Sequence[Skipped], called: Sequence[Called]) -> str:
    """The table of the README: by source, and beside the others on the rows that each of them can do."""
    ours = [score for score in scores if score.estimator in OWN]
    lines = ["| source | measured | by | " + " | ".join(COLUMNS) + " |", "|---|---|---|" + "--:|" * len(COLUMNS)]
    lines += _markdown_rows(grouped(ours, by_source))
    for title, group in comparisons(scores):
        lines += _markdown_rows({(title, *reversed(key)): found for key, found in _sharpest(group).items()})
    outcomes = Counter(one.outcome for one in called)
    counted = ", ".join(f"{outcomes[name]} {name}" for name in ("right", "too close", "wrong"))
    return "\n".join([*lines, "", f"Verdicts: {counted}. Rows not scored: {len(skipped)}."])


def _sharpest(group: dict[Key, Summary]) -> dict[Key, Summary]:
    """Allocated and process, each by them and by the sharper of our two ways."""
    found = {}
    for (name, metric), summary in group.items():
        replayed = (REPLAYED, metric) in group
        if metric != Metric.RESERVED and not (name == OURS and replayed):
            found[name, metric] = summary
    return found


def _markdown_rows(summaries: dict[Key, Summary]) -> list[str]:
    return [f"| {' | '.join((*key, *numbers(summary)))} |" for key, summary in summaries.items()]


def as_json(scores: Sequence[Score], skipped: Sequence[Skipped], called: Sequence[Called]) -> dict[str, Any]:
    """Everything, row by row."""
    return {
        "summaries": {
            name: {" / ".join(key): _plain(summary) for key, summary in grouped(scores, key_of).items()}
            for name, key_of in (
                ("by estimator", by_estimator),
                ("by source", by_source),
                ("by method and sharding", by_cell),
            )
        },
        "scores": [
            {
                "id": score.case.id,
                "source": score.case.source,
                "fully_specified": score.case.fully_specified,
                "estimator": score.estimator,
                "metric": score.metric.value,
                "method": score.method,
                "sharding": score.sharding,
                "measured_bytes": score.measured_bytes,
                "predicted_bytes": score.predicted_bytes,
                "error_percent": round(score.error_percent, 3),
            }
            for score in scores
        ],
        "verdicts": [
            {"id": one.case.id, "card": one.card, "own_card": one.is_own_card, "verdict": one.verdict.value,
             "fits": one.fits, "outcome": one.outcome}
            for one in called
        ],
        "not_scored": [{"id": one.id, "reason": one.reason} for one in skipped],
    }  # fmt: skip


def _plain(summary: Summary) -> dict[str, float]:
    return {name: round(getattr(summary, name), 3) for name in Summary.__dataclass_fields__}


def _print(console: Console, title: str, keys: tuple[str, ...], summaries: dict[Key, Summary]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in keys:
        table.add_column(name)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for key, summary in summaries.items():
        table.add_row(*key, *numbers(summary))
    console.print(table)
    console.print()


def _print_verdicts(console: Console, called: Sequence[Called]) -> None:
    table = Table(title="Verdicts", title_justify="left", box=None, pad_edge=False)
    for name in ("asked about", "sharding"):
        table.add_column(name)
    for name in ("right", "too close to call", "wrong"):
        table.add_column(name, justify="right")
    rows: defaultdict[Key, Counter[str]] = defaultdict(Counter)
    for one in called:
        rows["the card it ran on" if one.is_own_card else "the next smaller card", one.sharding][one.outcome] += 1
    for key, counts in rows.items():
        table.add_row(*key, *(str(counts[name]) for name in ("right", "too close", "wrong")))
    console.print(table)
    console.print()


def _print_skipped(console: Console, skipped: Sequence[Skipped]) -> None:
    table = Table(title="Not scored", title_justify="left", box=None, pad_edge=False)
    for name in ("source", "rows", "reason"):
        table.add_column(name, justify="right" if name == "rows" else "left")
    reasons = Counter((one.group, one.reason.split(":")[0]) for one in skipped)
    for (group, reason), count in sorted(reasons.items()):
        table.add_row(group, str(count), reason)
    console.print(table)
