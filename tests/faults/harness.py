"""A launcher in a process of its own, over stub ranks; and the proof that nothing of it is left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.processes import ProcessId, end_processes, processes_of_run, read_environment, send_signal
from launcher.runs.records import RunState, Status, read_record
from launcher.runs.tail import read_metrics
from launcher.spec import Program, ShardKind
from launcher.targets.folder import write_run_folder
from launcher.targets.ports import choose_port, port_is_free
from tests.launching import make_launch, make_spec

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 90.0


def stub_launch(
    runs_dir: Path, program: Program, *, mode: str = "", steps: int = 100_000, run_id: str = "run"
) -> LaunchPlan:
    """A launch plan whose ranks are stubs; everything else in it is as rendered."""
    launch = make_launch(
        runs_dir,
        spec=make_spec(program=program, shard=ShardKind.ZERO2),
        run_id=run_id,
        python=sys.executable,
        master_port=choose_port(str(runs_dir)),
    )
    return with_stubs(launch, STUB_JOIN="1", STUB_MODE=mode, STUB_STEPS=str(steps))


def with_stubs(launch: LaunchPlan, *, real_torchrun: bool = True, **stub: str) -> LaunchPlan:
    """The plan with ranks that train nothing; without real_torchrun also without what torchrun costs."""
    stands_for = {"jobs.train": "tests.faults.stub_rank"}
    if not real_torchrun:
        stands_for["torch.distributed.run"] = "tests.faults.stub_torchrun"
    argv = tuple(stands_for.get(word, word) for word in launch.argv)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **stub}
    return dataclasses.replace(launch, argv=argv, env=launch.env | environment)


@dataclasses.dataclass(frozen=True)
class LauncherProcess:
    """A launcher under test. output collects what it says."""

    run: RunFolder
    launch: LaunchPlan
    process: subprocess.Popen[bytes]
    output: Path

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        return self.process.wait(timeout=timeout_s)

    def say(self) -> str:
        return self.output.read_text()

    def state(self) -> RunState:
        state = read_record(self.run.state, RunState)
        assert state is not None
        return state

    def rank(self, rank: int) -> ProcessId:
        """The process of a rank."""
        return next(p for p in self.processes() if read_environment(p.pid).get("RANK") == str(rank))

    def processes(self) -> tuple[ProcessId, ...]:
        return processes_of_run(self.launch.run_dir)

    def wait_for_steps(self, count: int = 2) -> None:
        wait_for(lambda: len(read_metrics(self.run.metrics)) >= count, f"{count} steps", self.say)


def wait_for(condition: Callable[[], bool], what: str, describe: Callable[[], str] = str) -> None:
    """Wait for a condition, with a hard limit."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not come: {describe()}"
        time.sleep(0.05)


@contextlib.contextmanager
def launcher_process(launch: LaunchPlan, *, grace_s: float = 60.0, write: bool = True) -> Iterator[LauncherProcess]:
    """Run a launcher over the plan; whatever the test does, no process outlives it."""
    run = write_run_folder(launch, now_s=time.time()) if write else RunFolder(Path(launch.run_dir))
    output = run.root.parent / f"{launch.run_id}-{time.monotonic_ns()}.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.drive", launch.run_dir, str(grace_s)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield LauncherProcess(run=run, launch=launch, process=process, output=output)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait(timeout=10)
        end_processes(lambda: processes_of_run(launch.run_dir), term_grace_s=0.0)


def assert_nothing_left(launcher: LauncherProcess, *, within_s: float = 0.0) -> None:
    """No process, port, lock or half-written file is left of a run."""
    end = time.monotonic() + within_s
    while launcher.processes() and time.monotonic() < end:
        time.sleep(0.05)
    assert launcher.processes() == ()
    assert _session_members(launcher.process.pid) == []
    ports = [int(word.partition("=")[2]) for word in launcher.launch.argv if word.startswith("--master_port=")]
    assert all(port_is_free(port) for port in ports)
    assert_no_half_written_file(launcher.run)


def assert_no_half_written_file(run: RunFolder) -> None:
    """Every JSON file and line parses, and no temporary file is there. A lock file may be, if nobody holds it."""
    hidden = [path.name for path in run.root.rglob(".*")]
    assert hidden in ([], [run.lock.name])
    for path in run.root.rglob("*.json"):
        json.loads(path.read_text())
    for path in run.root.rglob("*.jsonl"):
        text = path.read_text()
        assert text.endswith("\n")
        for line in text.splitlines():
            json.loads(line)


def _session_members(session: int) -> list[int]:
    """Living processes in the launcher's own session."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    members.append(int(entry.name))
    return members


def kill(process: ProcessId) -> None:
    """SIGKILL, to this very process."""
    send_signal(process, signal.SIGKILL)


def assert_state(launcher: LauncherProcess, status: Status, exit_code: int) -> None:
    """state.json tells the same truth as the exit code."""
    state = launcher.state()
    assert (state.status, state.exit_code) == (status, exit_code)
    assert os.getpid() != state.launcher_pid
