"""How long a plan takes, as a whole process, beside what it avoids: `python benchmarks/latency.py [--runs N]`.

The commands are timed in turn, round after round, so that a slow moment of the machine touches all of them; quote the
medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
LAUNCH = (sys.executable, str(ROOT / "launch.py"))
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "python -c 'import torch'": (sys.executable, "-c", "import torch"),
    "a Hydra app that composes conf/ and does nothing": (
        sys.executable, str(ROOT / "benchmarks" / "hydra_noop.py"), "hydra.run.dir=.",
    ),
    "mode=plan, the default": (*LAUNCH, "mode=plan"),
    "mode=plan, llama3-8b lora zero3 gpus=8": (*LAUNCH, "mode=plan", "model=llama3-8b", "shard=zero3", "gpus=8"),
    "mode=plan, llama3.1-405b qlora fsdp nodes=8": (
        *LAUNCH, "mode=plan", "model=llama3.1-405b", "method=qlora", "shard=fsdp", "gpus=8", "nodes=8",
        "cluster=slurm", "device=h100-80g", "train.global_batch=128",
    ),
    "-m mode=plan, 12 cells": (
        *LAUNCH, "-m", "mode=plan", "model=llama3-8b", "gpus=8", "method=full,lora,qlora", "shard=ddp,fsdp,zero2,zero3",
    ),
}  # fmt: skip


BASELINE = "a Hydra app that composes conf/ and does nothing"


def time_s(command: tuple[str, ...]) -> float:
    """Wall time of one run of a whole process. Exit code 3 (does not fit) is an answer too."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return elapsed


def main() -> None:
    """Time every command and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=7)
    num_runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        time_s(command)  # warm the disk cache
    for _ in track(range(num_runs), description="timing", console=Console(stderr=True)):
        for name, command in COMMANDS.items():
            times[name].append(time_s(command))
    baseline = statistics.median(times[BASELINE])
    table = Table("command", "min s", "median s", "max s", "x Hydra app", box=None)
    for name, values in times.items():
        median = statistics.median(values)
        table.add_row(name, *(f"{v:.3f}" for v in (min(values), median, max(values))), f"{median / baseline:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
