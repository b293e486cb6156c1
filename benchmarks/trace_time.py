"""How long a cold trace takes, and the same plan from the cache: `python -m benchmarks.trace_time [--record]`.

Whole processes: `launch.py mode=plan plan.by=trace`, first with an empty cache, then again. CPU seconds are those of
the command and of the tracer that it starts; on a busy machine they are what to compare, and they grow there too.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "trace_time.txt"
EIGHT = ("model=llama3-8b", "gpus=8", "train.global_batch=8")
SEVENTY = ("model=llama3.1-70b", "gpus=8", "nodes=8", "cluster=slurm", "train.global_batch=64")
COMMON = ("mode=plan", "plan.by=trace", "device=h100-80g", "train.micro_batch=1", "train.sequence_length=4096")
ANSWERS = (0, 3)  # 3: it does not fit
TIMEOUT_S = 900
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A job, and the bar for its cold trace."""

    name: str
    overrides: tuple[str, ...]
    bar_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one command with all that it started."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


def cases() -> Iterator[Case]:
    """An 8B model in every cell on eight GPUs, and a 70B model on 64."""
    for method in ("full", "lora", "qlora"):
        for shard in ("ddp", "fsdp", "zero2", "zero3"):
            yield _case("8B", EIGHT, 8, method, shard, bar_s=30)
    for method, shard in (("full", "fsdp"), ("lora", "fsdp"), ("full", "zero3"), ("lora", "zero3"), ("qlora", "zero3")):
        yield _case("70B", SEVENTY, 64, method, shard, bar_s=120)


def _case(size: str, overrides: tuple[str, ...], ranks: int, method: str, shard: str, *, bar_s: int) -> Case:
    return Case(
        name=f"{size} {method} {shard} x {ranks}",
        overrides=(*COMMON, *overrides, f"method={method}", f"shard={shard}"),
        bar_s=bar_s,
    )


def cost(overrides: Sequence[str], environ: Mapping[str, str]) -> Cost:
    """Run a plan to its end."""
    command = (sys.executable, str(ROOT / "launch.py"), *overrides)
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in ANSWERS or "the trace failed" in said:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{said[-2000:]}")
    return Cost(
        wall_s=time.perf_counter() - start, cpu_s=used.ru_utime + used.ru_stime, peak_rss_bytes=used.ru_maxrss * 1024
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Time every case and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.trace_time", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--record", action="store_true", help=f"write the table to {RESULT.name} as well")
    options = parser.parse_args(arguments)
    table = Table("job", "bar s", "wall s", "CPU s", "peak RSS MiB", "cached: wall s", "CPU s", box=None)
    chosen = [case for case in cases() if options.only in case.name]
    for case in track(chosen, "tracing", console=Console(stderr=True), transient=True):
        with tempfile.TemporaryDirectory(prefix="fitlaunch-trace-time-") as folder:
            environ = {**os.environ, "FITLAUNCH_CACHE": folder}
            cold, cached = cost(case.overrides, environ), cost(case.overrides, environ)
        table.add_row(
            case.name,
            str(case.bar_s),
            f"{cold.wall_s:.1f}",
            f"{cold.cpu_s:.1f}",
            f"{cold.peak_rss_bytes / MIB:.0f}",
            f"{cached.wall_s:.2f}",
            f"{cached.cpu_s:.2f}",
        )
    show(Console(width=120), table)
    if options.record:
        with RESULT.open("w") as file:
            show(Console(file=file, width=120), table)


def show(console: Console, table: Table) -> None:
    """The table, and on what machine it was made."""
    load = os.getloadavg()[1]
    console.print(f"{os.cpu_count()} cores, load {load:.1f}, {platform.platform()}", highlight=False)
    console.print(table, highlight=False)


if __name__ == "__main__":
    main()
