"""How far plans are from what others measured: `python benchmarks/accuracy.py --cases FILE`.

A case is one JSON object a line (tests/fixtures/measured has some). Allocated, reserved and process memory are kept
apart; rows that the planner does not model are listed with the reason. Nothing of the planner was fitted to a row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from scoring.cases import Case, read_cases
from scoring.jobs import Job, job_of
from scoring.others import peer_scores
from scoring.reading import Unmodelled
from scoring.score import Score, Skipped, score_job
from scoring.table import as_json, markdown, print_intervals, print_tables
from scoring.verdicts import Called, call

CASES = Path(__file__).parents[1] / "tests" / "fixtures" / "measured"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, score, compare, print."""
    options = _options(arguments)
    progress = Console(stderr=True, quiet=options.quiet)
    cases, skipped = _read(options.cases)
    if not cases:
        raise SystemExit("no case could be read: " + "; ".join(f"{one.id}: {one.reason}" for one in skipped[:3]))
    jobs, unmodelled = _jobs(cases, complete=options.complete)
    skipped += unmodelled
    if not jobs:
        raise SystemExit("no case is modelled: " + "; ".join(sorted({one.reason for one in skipped})))
    scores: list[Score] = []
    called: list[Called] = []
    for case, job in track(jobs, "planning", console=progress, transient=True):
        scores += score_job(case, job)
        called += call(case, job)
    if not (options.alone or options.intervals):
        progress.print("asking the other estimators")
        theirs, notes = peer_scores(jobs, options.fitcheck_python)
        scores += theirs
        for note in notes:
            progress.print(f"not compared: {note}")
    _print(options, scores, skipped, called)


def _print(
    options: argparse.Namespace, scores: Sequence[Score], skipped: Sequence[Skipped], called: Sequence[Called]
) -> None:
    if options.json:
        print(json.dumps(as_json(scores, skipped, called), indent=1))
    elif options.intervals:
        print_intervals(_console(), scores)
    elif options.markdown:
        print(markdown(scores, skipped, called))
    else:
        print_tables(_console(), scores, skipped, called)


def _jobs(cases: Sequence[Case], *, complete: bool) -> tuple[list[tuple[Case, Job]], list[Skipped]]:
    """The cases that can be asked about, and the others with the reason."""
    jobs: list[tuple[Case, Job]] = []
    skipped: list[Skipped] = []
    for case in cases:
        try:
            if complete and not case.fully_specified:
                raise Unmodelled("not fully specified")
            jobs.append((case, job_of(case)))
        except Unmodelled as reason:
            skipped.append(Skipped(id=case.id, group=case.group, reason=str(reason)))
    return jobs, skipped


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _read(paths: Sequence[Path]) -> tuple[list[Case], list[Skipped]]:
    cases: list[Case] = []
    skipped: list[Skipped] = []
    for path in paths:
        for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            found, refused = read_cases(file)
            cases += found
            skipped += [Skipped(id=where, group=where.split("-")[0], reason=why) for where, why in refused]
    return cases, skipped


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cases", type=Path, nargs="+", default=[CASES], help="files of cases, or folders of such")
    parser.add_argument("--complete", action="store_true", help="only rows whose source states every setting")
    parser.add_argument("--alone", action="store_true", help="leave the other estimators out")
    parser.add_argument(
        "--fitcheck-python", default=sys.executable, help="an interpreter with fitcheck-llm (default: this one)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="every row, to stdout")
    output.add_argument("--intervals", action="store_true", help="how wide intervals must be, sources left out in turn")
    output.add_argument("--markdown", action="store_true", help="the table of the README")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
