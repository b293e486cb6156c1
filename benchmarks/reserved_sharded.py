"""What the caching allocator reserves over what several GPUs' ranks allocate: `python -m benchmarks.reserved_sharded`.

Jobs of every method and sharding are traced with the real libraries and the streams replayed with expandable segments,
which the job asks for: without a limit, and with the least on which the job survives. launcher/planner/verdict.py takes
what the closed form adds under ZeRO-2 from here, and the least that survives: no measurement is among it. Traces are
kept (--cache) and not made again; --record writes the figures, and --recorded prints those without a trace. With
--only, the others stay as they were recorded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from launcher.planner.tracing.cache import TraceCache
from launcher.planner.tracing.key import package_versions
from launcher.planner.tracing.tracer import Tracer
from launcher.spec import JobSpec, MethodKind, ShardKind
from tests.planner_jobs import job, model_config

RESULT = Path(__file__).parent / "results" / "reserved_sharded.json"
CACHE = Path.home() / ".cache" / "fitlaunch" / "reserved"
MODELS = ("llama3.2-1b", "llama3-8b")
CHECKPOINTING = ("none", "full")
RANKS = (2, 8)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Of one traced job's rank 0. least_bytes: the least memory on which the replay survives."""

    shard: ShardKind
    ranks: int
    allocated_bytes: int
    reserved_bytes: int
    least_bytes: int

    @property
    def reserved_percent(self) -> float:
        return 100 * self.reserved_bytes / self.allocated_bytes

    @property
    def least_percent(self) -> float:
        return 100 * self.least_bytes / self.allocated_bytes


def jobs() -> Iterator[tuple[str, JobSpec]]:
    """96 on one node, with names."""
    for model, method, shard, ranks, checkpointing in itertools.product(
        MODELS, MethodKind, ShardKind, RANKS, CHECKPOINTING
    ):
        spec = job(
            model_config(model),
            method=method,
            shard=shard,
            gpus=ranks,
            global_batch=ranks,
            checkpointing=checkpointing,
            sequence_length=4096,
        )
        yield f"{model} {method} {shard} gpus={ranks} checkpointing={checkpointing}", spec


def traced(spec: JobSpec, tracer: Tracer) -> Found:
    """What a trace of the job says, made now where it is not kept. Raises TraceFailed."""
    summary = tracer.summary(spec, 0)
    return Found(
        shard=spec.shard.kind,
        ranks=spec.world_size,
        allocated_bytes=summary.allocated_bytes,
        reserved_bytes=summary.reserved_bytes,
        least_bytes=summary.least_capacity_bytes,
    )


def read() -> dict[str, Found]:
    """The recorded figures, by the job's name."""
    return msgspec.convert(json.loads(RESULT.read_text(encoding="utf-8"))["jobs"], dict[str, Found])


def write(found: Mapping[str, Found]) -> None:
    """Record figures with the versions that they were made with."""
    lines = ",\n".join(f"  {json.dumps(name)}: {msgspec.json.encode(one).decode()}" for name, one in found.items())
    RESULT.write_text(
        f'{{\n "versions": {json.dumps(package_versions())},\n "jobs": {{\n{lines}\n }}\n}}\n', encoding="utf-8"
    )


def table(found: Mapping[str, Found]) -> Table:
    """Both percentages by sharding and number of ranks."""
    groups: defaultdict[tuple[str, str], list[Found]] = defaultdict(list)
    for one in found.values():
        for ranks in ("any", str(one.ranks)):
            groups[one.shard.value, ranks].append(one)
    made = Table("sharding", "ranks", "jobs", "reserved", "low", "high", "least", "low", "high", box=None)
    for (shard, ranks), rows in sorted(groups.items()):
        made.add_row(
            shard,
            ranks,
            str(len(rows)),
            *_figures([one.reserved_percent for one in rows]),
            *_figures([one.least_percent for one in rows]),
        )
    return made


def _figures(percents: Sequence[float]) -> Iterator[str]:
    return (f"{value:.1f} %" for value in (statistics.median(percents), min(percents), max(percents)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace what is not kept, replay, print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.reserved_sharded", description=__doc__)
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where traces are kept")
    parser.add_argument("--recorded", action="store_true", help="print what was recorded; traces nothing")
    parser.add_argument("--record", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args(arguments)
    found = read() if options.recorded or options.only else {}
    if not options.recorded:
        tracer = Tracer(cache=TraceCache(options.cache), environ=os.environ, progress=lambda _: None)
        wanted = [(name, spec) for name, spec in jobs() if options.only in name]
        for name, spec in track(wanted, "tracing", console=Console(stderr=True), transient=True):
            found[name] = traced(spec, tracer)
    Console(width=120).print(table(found), highlight=False)
    if options.record:
        write(found)


if __name__ == "__main__":
    main()
