"""Runs on several hosts of the bed: their launcher on the login node, and the proof that nothing of them is left."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.processes import RUN_VARIABLE
from launcher.runs.records import RunState, read_record
from launcher.runs.tail import read_metrics
from launcher.spec import HostSlots, JobSpec, Program, ShardKind
from launcher.targets.folder import write_run_folder
from slurm.bed import Bed
from slurm.bed.commands import clean_environment
from slurm.bed.processes import command_of, send
from slurm.bed.settings import HEAD
from tests.launching import make_launch
from tests.several_hosts import TWO, hosts_spec
from tests.slurm.harness import ROOT

TIMEOUT_S = 120.0
RANKS_PER_NODE = 2


def still_run(
    runs_dir: Path,
    program: Program = Program.TORCHRUN,
    *,
    mode: str = "",
    steps: int = 100_000,
    hosts: Sequence[HostSlots] = TWO,
    environment: Sequence[str] = (),
    paths: Mapping[str, str] | None = None,
) -> RunFolder:
    """A rendered run whose ranks are stubs; under torchrun their starter is, too. paths: to see on every host."""
    spec = hosts_spec(hosts, program=program, shard=ShardKind.ZERO2, source="embedded", environment=environment)
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, **dict(paths or {})))
    launch = _with_still_ranks(make_launch(runs_dir, spec=spec, run_id="run", python=sys.executable), spec, mode, steps)
    return write_run_folder(launch, now_s=time.time())


def _with_still_ranks(launch: LaunchPlan, spec: JobSpec, mode: str, steps: int) -> LaunchPlan:
    stub = {
        "PYTHONPATH": str(ROOT),
        "STILL_MODE": mode,
        "STILL_NODES": str(spec.nodes),
        "STILL_PER_NODE": str(spec.gpus_per_node),
        "STILL_STEPS": str(steps),
    }
    if spec.program is Program.DEEPSPEED:
        argv = tuple("tests.slurm.still_ranks" if word == "jobs.train" else word for word in launch.argv)
    else:
        argv = (sys.executable, "-m", "tests.slurm.still_ranks", launch.run_dir)
    return dataclasses.replace(launch, argv=argv, env=launch.env | stub)


@dataclasses.dataclass(frozen=True)
class Following:
    """A launcher under test, on the login node of the bed."""

    bed: Bed
    run: RunFolder
    process: subprocess.Popen[bytes]
    output: Path

    def send(self, name: str) -> None:
        """Signal the launcher itself; its number inside the bed is in state.json."""
        state = self.state()
        assert state.launcher_pid is not None
        self.bed.must(HEAD, ("kill", f"-{name}", str(state.launcher_pid)))

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher still runs after {timeout_s} s:\n{self.says()}") from None

    def says(self) -> str:
        """What it printed."""
        return self.output.read_text()

    def state(self) -> RunState:
        """state.json."""
        state = read_record(self.run.state, RunState)
        assert state is not None
        return state

    def wait_for_steps(self, count: int = 2, attempt: int = 1) -> None:
        """Wait until training has gone on."""
        self.wait_for(
            lambda: sum(m.attempt == attempt for m in read_metrics(self.run.metrics)) >= count, f"{count} steps"
        )

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait for a condition, with a hard limit."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{what} did not come:\n{self.says()}"
            assert self.process.poll() is None, f"the launcher ended before {what} came:\n{self.says()}"
            time.sleep(0.05)


@contextlib.contextmanager
def following(
    bed: Bed, run: RunFolder, *, grace_s: float = 60.0, env: Mapping[str, str] | None = None
) -> Iterator[Following]:
    """Start, or resume, a run from the login node; whatever the test does, nothing of it outlives it."""
    output = run.root.parent / f"launcher-{time.monotonic_ns()}.txt"
    argv = (sys.executable, "-m", "tests.faults.drive", str(run.root), str(grace_s))
    with output.open("wb") as file:
        process = subprocess.Popen(
            bed.command(HEAD, argv, cwd=ROOT),
            env=clean_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Following(bed=bed, run=run, process=process, output=output)
    finally:
        process.kill()
        process.wait(timeout=10)
        for host in (HEAD, *(node.name for node in bed.settings.nodes if bed.is_on(node.name))):
            for pid in pids_on(bed, host, run):
                send(pid, signal.SIGKILL)


def pids_on(bed: Bed, host: str, run: RunFolder) -> list[int]:
    """Processes of a run on a host, found from outside: by environment or by command line."""
    found = []
    for pid in bed.processes(host):
        with contextlib.suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"{RUN_VARIABLE}={run.root}".encode() in environ or str(run.root).encode() in command:
                found.append(pid)
    return found


def left_on(bed: Bed, host: str, run: RunFolder) -> list[str]:
    """The commands of what is left of a run on a host."""
    return [" ".join(command_of(pid)) for pid in pids_on(bed, host, run)]


def assert_nothing_left(bed: Bed, run: RunFolder, *, within_s: float = 0.0) -> None:
    """No process of the run is on any host, no ssh on the login node leads to one, and no file is half written."""
    end = time.monotonic() + within_s
    while (left := _left(bed, run)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    hidden = [path.name for path in run.root.rglob(".*")]
    assert hidden in ([], [run.lock.name])
    assert list((run.root / "control").glob("nonce-*")) == []


def _left(bed: Bed, run: RunFolder) -> list[str]:
    hosts = [HEAD, *(node.name for node in bed.settings.nodes if bed.is_on(node.name))]
    return [f"{host}: {command}" for host in hosts for command in left_on(bed, host, run)]
