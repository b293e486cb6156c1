"""The closed form against the trace: `python -m benchmarks.closed_form` plans and traces a grid of jobs and compares.

Every architecture in every cell, and what else changes memory around three of them; realistic widths with few layers,
and some whole models. The bounds: persistent bytes within 3 %, the peak of a steady step within 8 %. What is out of
them is listed. Traces are kept (--cache) and not made again: --cached takes those that are there alone. Remove them
when the tracer changes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.grid.cases import Case, grid
from benchmarks.grid.compare import PEAK_BOUND, PERSISTENT_BOUND, Compared, compare
from benchmarks.grid.traces import Failed, import_libraries, trace
from launcher.spec import JobSpec, content_hash, to_json

RESULT = Path(__file__).parent / "results" / "closed_form.txt"
CACHE = Path.home() / ".cache" / "fitlaunch" / "grid"
RANK = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace, plan, compare, print."""
    options = _options(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    cases = [case for case in grid() if options.only in case.name]
    progress = Console(stderr=True)
    if not options.cached:
        import_libraries()
    compared: list[Compared] = []
    failed: list[tuple[Case, str]] = []
    for case in track(cases, "tracing", console=progress, transient=True):
        spec = case.spec()
        out = options.cache / f"{_key(spec)}.json"
        if options.cached and not out.exists():
            continue
        found = trace(spec, RANK, out)
        if isinstance(found, Failed):
            failed.append((case, found.reason))
        else:
            compared.append(compare(case, found, RANK))
    _print(Console(width=150), compared, failed)
    if options.record:
        with RESULT.open("w") as file:
            _print(Console(file=file, width=150), compared, failed)


def _key(spec: JobSpec) -> str:
    """Names a trace by all of the job but where it runs, which no trace depends on."""
    job = json.loads(to_json(spec)) | {"cluster": {"kind": spec.cluster.kind}}
    return content_hash(json.dumps(job, indent=2, ensure_ascii=False))[:16]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.closed_form", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where traces are kept")
    parser.add_argument("--cached", action="store_true", help="only cases that were traced before")
    parser.add_argument("--record", action="store_true", help=f"write the tables to {RESULT.name} as well")
    return parser.parse_args(arguments)


def _print(console: Console, compared: Sequence[Compared], failed: Sequence[tuple[Case, str]]) -> None:
    console.print(f"{len(compared)} of {len(grid())} jobs, rank {RANK}; error: closed form / trace - 1")
    console.print(_table(compared))
    misses = sorted((one for one in compared if one.misses), key=lambda one: -abs(one.peak_error))
    console.print(f"out of bounds: {len(misses)} of {len(compared)}")
    for one in misses:
        phases = ", ".join(f"{phase} {_percent(error)}" for phase, error in one.by_phase.items())
        errors = f"peak {_percent(one.peak_error)}, persistent {_percent(one.persistent_error)}"
        console.print(f"  {one.case.name}: {errors} ({phases})")
    for case, reason in failed:
        console.print(f"  not traced: {case.name}: {reason}")


def _table(compared: Sequence[Compared]) -> Table:
    table = Table(box=None)
    for name in ("method", "sharding", "jobs", "peak: median", "worst low", "worst high", f"in {PEAK_BOUND:.0%}"):
        table.add_column(name, justify="left" if name in ("method", "sharding") else "right")
    for name in ("persistent: median", "worst low", "worst high", f"in {PERSISTENT_BOUND:.0%}"):
        table.add_column(name, justify="right")
    groups: defaultdict[tuple[str, str], list[Compared]] = defaultdict(list)
    for one in compared:
        groups[one.case.method, one.case.shard].append(one)
    for (method, shard), rows in sorted(groups.items()):
        table.add_row(method, shard, *_row(rows))
    if compared:
        table.add_row("all", "", *_row(compared))
    return table


def _row(rows: Sequence[Compared]) -> tuple[str, ...]:
    peaks = [one.peak_error for one in rows]
    lasting = [one.persistent_error for one in rows]
    return (
        str(len(rows)),
        *_errors(peaks, PEAK_BOUND),
        *_errors(lasting, PERSISTENT_BOUND),
    )


def _errors(errors: Sequence[float], bound: float) -> Iterable[str]:
    median = statistics.median(map(abs, errors))
    inside = sum(abs(error) <= bound for error in errors)
    low, high = min(errors), max(errors)
    return f"{100 * median:.2f} %", _percent(min(low, 0.0)), _percent(max(high, 0.0)), f"{inside}/{len(errors)}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


if __name__ == "__main__":
    main()
