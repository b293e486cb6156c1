"""Measuring on the GPUs of this host: one process for the context, then torchrun for each number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from launcher.calibrating.amounts import context_amounts, nccl_amounts
from launcher.errors import InputError, JobFailed, Problem
from launcher.host import Host
from launcher.planner.calibration import Amount, Calibration
from launcher.readings import ContextReadings, NcclReadings, Place

COMMAND = "fitlaunch calibrate"
PYTHON = (sys.executable, "-m", "jobs.calibrate")
TIMEOUT_S = 300.0
T = TypeVar("T")
Say = Callable[[str], None]


class Read(Protocol):
    """Runs a command, and reads the document that it leaves in `output`."""

    def __call__(self, argv: tuple[str, ...], output: Path, kind: type[T]) -> T: ...


def calibrate_gpus(host: Host, say: Say, read: Read | None = None) -> Calibration:
    """Measure this host's GPUs. Raises InputError where there is none, JobFailed where measuring fails.

    read: runs a command that leaves its readings in a file; for tests.
    """
    read = read or run_and_read
    if host.num_gpus == 0 or host.gpu is None:
        raise InputError([_no_gpu(host)])
    with tempfile.TemporaryDirectory(prefix="fitlaunch-") as scratch:
        output = Path(scratch) / "readings.json"
        say("measuring the CUDA context and the cuBLAS workspace")
        context = read((*PYTHON, "context", str(output)), output, ContextReadings)
        nccl = []
        for count in counts_of_ranks(host.num_gpus):
            say(f"measuring NCCL over {count} GPUs")
            launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
            nccl.append(read((*launcher, "-m", "jobs.calibrate", "nccl", str(output)), output, NcclReadings))
    amounts = (*context_amounts(context), *(amount for readings in nccl for amount in nccl_amounts(readings)))
    return make_calibration(host.gpu.name, context.place, amounts, {"context": context, "nccl": nccl}, COMMAND)


def counts_of_ranks(num_gpus: int) -> tuple[int, ...]:
    """Two ranks, four, and so on up to all of them: memory depends on how many there are."""
    powers = [2**exponent for exponent in range(1, 8) if 2**exponent < num_gpus]
    return (*powers, num_gpus) if num_gpus > 1 else ()


def make_calibration(
    card: str, place: Place, amounts: tuple[Amount, ...], readings: object, command: str
) -> Calibration:
    """A calibration made now."""
    return Calibration(
        card=card,
        host=place.host,
        driver=place.driver,
        versions=place.versions,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        amounts=amounts,
        readings=msgspec.to_builtins(readings),
    )


def _no_gpu(host: Host) -> Problem:
    found = f"has no GPU that can be measured ({host.gpu_problem})" if host.gpu_problem else "has no GPU"
    way_out = "run it on a host that has, or fitlaunch calibrate --cpu for CPU ranks"
    return Problem(field="host", value=host.hostname, rule=found, way_out=way_out)


def run_and_read(argv: tuple[str, ...], output: Path, kind: type[T]) -> T:
    """Run one measurement to its end, and read what it wrote."""
    output.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONSAFEPATH": "1", "CUDA_MODULE_LOADING": "LAZY", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise JobFailed(f"{' '.join(argv)} was still measuring after {TIMEOUT_S:.0f} s") from error
    if done.returncode != 0 or not output.exists():
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise JobFailed(f"{' '.join(argv)} ended with {done.returncode}:\n{tail}")
    return msgspec.json.decode(output.read_bytes(), type=kind)
