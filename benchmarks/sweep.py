"""How long a sweep of 64 cells takes until it is submitted, as a whole process: `python benchmarks/sweep.py [--runs N]
[--record]`.

Slurm's commands are stand-ins that answer at once, so that what is timed is the launcher: 64 cells composed, planned
and filtered, 64 run folders and one script written, one sbatch. Beside it stands the same sweep composed and run by
Hydra's own launcher, which stops after the plans. CPU seconds are those of the process and its children; they hold
where a machine is shared, and wall time does not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sweep.txt"
MAIN = "import sys; from launcher.main import main; code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
CELLS = (
    "model=llama3-8b", "gpus=8", "device=h100-80g", "method=lora,qlora", "shard=ddp,fsdp,zero2,zero3",
    "train.learning_rate=1e-4,2e-4", "train.global_batch=16,32", "train.seed=1,2", "cluster=slurm",
)  # fmt: skip
NUM_CELLS = 64
COMMANDS = {
    "Hydra's launcher, plans only": ("mode=plan", "hydra/launcher=basic"),
    "plans only": ("mode=plan",),
    "rendered: run folders and scripts": ("mode=render",),
    "submitted: one sbatch for each array": ("cluster.mem=0",),
}
ANSWERS = {
    "sbatch": "echo call >> $(dirname $0)/calls; echo 17",
    "scontrol": "case $3 in partition) echo PartitionName=main Default=YES State=UP TotalNodes=4 MaxTime=UNLIMITED;;"
    " *) echo 'MaxArraySize = 1001';; esac",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One run of a whole process. num_sbatch: how often it called sbatch."""

    wall_s: float
    cpu_s: float
    num_sbatch: int


def stand_ins(folder: Path) -> Path:
    """A folder with Slurm's commands, which answer at once."""
    for name, answer in ANSWERS.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
    return folder


def measure(options: tuple[str, ...], programs: Path) -> Timing:
    """Run it once in a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        calls = programs / "calls"
        calls.unlink(missing_ok=True)
        path = f"{programs}:{os.environ['PATH']}"
        env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        command = (sys.executable, "-c", MAIN, "-m", *CELLS, *options)
        child = subprocess.Popen(command, cwd=scratch, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert child.stdout is not None
        said = child.stdout.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{said}")
        num_sbatch = len(calls.read_text().splitlines()) if calls.exists() else 0
    return Timing(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime, num_sbatch=num_sbatch)


def make_table(found: dict[str, list[Timing]]) -> Table:
    """Medians, and the least, which a busy machine adds to."""
    titles = ("", "CPU s, median", "least", "wall s, median", "least", "sbatch")
    runs, load = len(next(iter(found.values()))), os.getloadavg()[1]
    where = f"{os.cpu_count()} cores under a load of {load:.1f}"
    table = Table(*titles, box=None, title=f"{NUM_CELLS} cells, runs of each: {runs}; {where}")
    for name, timings in found.items():
        cpu, wall = [timing.cpu_s for timing in timings], [timing.wall_s for timing in timings]
        figures = (f"{value:.2f}" for value in (statistics.median(cpu), min(cpu), statistics.median(wall), min(wall)))
        table.add_row(name, *figures, str(timings[0].num_sbatch))
    return table


def main() -> None:
    """Time every command in turn, round after round, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"write {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    found: dict[str, list[Timing]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        programs = stand_ins(Path(folder))
        for _ in track(range(arguments.runs), description="timing", console=Console(stderr=True)):
            for name, options in COMMANDS.items():
                found[name].append(measure(options, programs))
    Console(width=120).print(make_table(found))
    if arguments.record:
        with RESULT.open("w") as file:
            Console(file=file, width=120).print(make_table(found))


if __name__ == "__main__":
    main()
