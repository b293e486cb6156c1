"""The closed form against the trace: `python -m benchmarks.closed_form` plans and traces a grid of jobs and compares.

Every architecture in every cell, and what else changes memory around three of them; realistic widths with few layers,
and some whole models. The bounds: persistent bytes within 3 %; within 8 % the peak of a steady step, and that of the
whole job, loading and evaluation included. What is out of them is listed. Traces are kept (--cache) and not made again:
--cached takes those that are there alone. Remove them when the tracer changes. --recorded needs none: it compares with
what was traced when the results were recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.grid.cases import Case, grid
from benchmarks.grid.compare import PEAK_BOUND, PERSISTENT_BOUND, Compared, compare
from benchmarks.grid.recorded import read_traces, write_traces
from benchmarks.grid.summary import Summary
from benchmarks.grid.traces import Failed, import_libraries, trace
from launcher.planner.types import Phase
from launcher.planner.verdict import ONE_RANK, confidence
from launcher.spec import JobSpec, ShardKind, content_hash, to_json

RESULT = Path(__file__).parent / "results" / "closed_form.txt"
CACHE = Path.home() / ".cache" / "fitlaunch" / "grid"
RANK = 0
WIDTH = 170


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace, plan, compare, print."""
    options = _options(arguments)
    cases = [case for case in grid() if options.only in case.name]
    if options.recorded:
        traces, failed = _recorded(cases), []
    else:
        traces, failed = _traced(cases, options.cache, cached=options.cached)
    compared = [compare(case, traces[case.name], RANK) for case in cases if case.name in traces]
    _print(Console(width=WIDTH), compared, failed)
    if options.record:
        if not options.recorded:
            write_traces(traces)
        with RESULT.open("w") as file:
            _print(Console(file=file, width=WIDTH), compared, failed)


def _recorded(cases: Sequence[Case]) -> dict[str, Summary]:
    names = {case.name for case in cases}
    return {name: found for name, found in read_traces().items() if name in names}


def _traced(cases: Sequence[Case], cache: Path, *, cached: bool) -> tuple[dict[str, Summary], list[tuple[Case, str]]]:
    """The traces of the cases, made where they are not kept, and why there are none of others."""
    cache.mkdir(parents=True, exist_ok=True)
    if not cached:
        import_libraries()
    traces: dict[str, Summary] = {}
    failed: list[tuple[Case, str]] = []
    for case in track(cases, "tracing", console=Console(stderr=True), transient=True):
        spec = case.spec()
        out = cache / f"{_key(spec)}.json"
        if cached and not out.exists():
            continue
        found = trace(spec, RANK, out)
        if isinstance(found, Failed):
            failed.append((case, found.reason))
        else:
            traces[case.name] = found
    return traces, failed


def _key(spec: JobSpec) -> str:
    """Names a trace by all of the job but where it runs, which no trace depends on."""
    job = json.loads(to_json(spec)) | {"cluster": {"kind": spec.cluster.kind}}
    return content_hash(json.dumps(job, indent=2, ensure_ascii=False))[:16]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.closed_form", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where traces are kept")
    parser.add_argument("--cached", action="store_true", help="only cases that were traced before")
    parser.add_argument("--recorded", action="store_true", help="take the traces that were recorded; traces nothing")
    parser.add_argument("--record", action="store_true", help=f"write the traces and {RESULT.name} as well")
    options = parser.parse_args(arguments)
    if options.record and options.only:
        parser.error("--record is of the whole grid: leave out --only")
    return options


def _print(console: Console, compared: Sequence[Compared], failed: Sequence[tuple[Case, str]]) -> None:
    console.print(f"{len(compared)} of {len(grid())} jobs, rank {RANK}; error: closed form / trace - 1")
    console.print(_table(compared))
    console.print(_phases(compared))
    misses = sorted((one for one in compared if one.misses), key=lambda one: -abs(one.job_error))
    console.print(_coverage(compared))
    console.print(f"out of bounds: {len(misses)} of {len(compared)}")
    for one in misses:
        phases = ", ".join(f"{phase} {_percent(error)}" for phase, error in one.by_phase.items())
        errors = ", ".join(
            f"{what} {_percent(error)}"
            for what, error in (("step", one.peak_error), ("job", one.job_error), ("lasting", one.persistent_error))
        )
        console.print(f"  {one.case.name}: {errors} ({phases})")
    for case, reason in failed:
        console.print(f"  not traced: {case.name}: {reason}")


def _coverage(compared: Sequence[Compared]) -> Table:
    """How far off the whole job's peak must be allowed to be, by what an interval is for."""
    table = Table(box=None, title="Job's peak against the trace", title_justify="left")
    for name in ("sharding", "jobs", *(f"{share:.0%} within" for share in SHARES), "in the interval, of"):
        table.add_column(name, justify="left" if name == "sharding" else "right")
    groups: defaultdict[str, list[Compared]] = defaultdict(list)
    for one in compared:
        if one.case.spec().world_size > 1:
            groups[one.case.shard.value.rstrip("23")].append(one)
    for name, rows in groups.items():
        errors = sorted(abs(one.job_error) for one in rows)
        allowed = confidence(rows[0].case.spec()).percent - ONE_RANK.percent
        found = (errors[math.ceil(share * len(errors)) - 1] for share in SHARES)
        table.add_row(name, str(len(rows)), *(f"{100 * error:.1f} %" for error in found), f"{allowed} %")
    return table


SHARES = (0.5, 0.9, 0.95, 1.0)


def _phases(compared: Sequence[Compared]) -> Table:
    """How far off each phase's own peak is, which is the job's in one of them alone."""
    table = Table(box=None, title="Phases' peaks against the trace", title_justify="left")
    for name in ("phase", "sharding"):
        table.add_column(name)
    for name in ("phases", "median", "low", "high", f"in {PEAK_BOUND:.0%}", ""):
        table.add_column(name, justify="right" if name else "left")
    groups: defaultdict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for one in compared:
        for phase, error in one.by_phase.items():
            groups[phase, one.case.shard.value].append((error, one.case.name))
    for phase in Phase:
        for shard in ShardKind:
            if rows := groups[phase.value, shard.value]:
                worst = max(rows, key=lambda row: abs(row[0]))[1]
                cells = _errors([error for error, _ in rows], PEAK_BOUND)
                table.add_row(phase.value, shard.value, str(len(rows)), *cells, f"furthest off: {worst}")
    return table


def _table(compared: Sequence[Compared]) -> Table:
    table = Table(box=None)
    for name in ("method", "sharding", "jobs"):
        table.add_column(name, justify="right" if name == "jobs" else "left")
    for what, _, bound in FIGURES:
        for name in (f"{what}: median", "low", "high", f"in {bound:.0%}"):
            table.add_column(name, justify="right")
    groups: defaultdict[tuple[str, str], list[Compared]] = defaultdict(list)
    for one in compared:
        groups[one.case.method, one.case.shard].append(one)
    for (method, shard), rows in sorted(groups.items()):
        table.add_row(method, shard, *_row(rows))
    if compared:
        table.add_row("all", "", *_row(compared))
    return table


FIGURES: tuple[tuple[str, Callable[[Compared], float], float], ...] = (
    ("step's peak", lambda one: one.peak_error, PEAK_BOUND),
    ("job's peak", lambda one: one.job_error, PEAK_BOUND),
    ("lasting", lambda one: one.persistent_error, PERSISTENT_BOUND),
)


def _row(rows: Sequence[Compared]) -> tuple[str, ...]:
    return (str(len(rows)), *(cell for _, of, bound in FIGURES for cell in _errors([of(one) for one in rows], bound)))


def _errors(errors: Sequence[float], bound: float) -> Iterable[str]:
    median = statistics.median(map(abs, errors))
    inside = sum(abs(error) <= bound for error in errors)
    low, high = min(errors), max(errors)
    return f"{100 * median:.2f} %", _percent(min(low, 0.0)), _percent(max(high, 0.0)), f"{inside}/{len(errors)}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


if __name__ == "__main__":
    main()
