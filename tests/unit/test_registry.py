"""Which run is meant, and how it stands: proven, or unknown."""

from __future__ import annotations

import dataclasses
import os
import socket
from datetime import datetime
from pathlib import Path

import pytest

from launcher.errors import InputError, SubmitError
from launcher.runs.frozen import read_launch_plan
from launcher.runs.layout import RunFolder
from launcher.runs.processes import this_process
from launcher.runs.records import RunState, Status, Stopped, read_record, write_record
from launcher.runs.registry import list_runs, new_run_id, resolve_run, summarise
from launcher.spec import MethodKind, ShardKind, content_hash
from launcher.targets.cancel import cancel
from launcher.targets.folder import write_run_folder
from launcher.targets.local import start_attempt
from tests.launching import make_launch, make_spec
from tests.markers import FINISHED

FIRST, SECOND, THIRD = "20261122-031501-a-1111", "20261122-031502-a-2222", "20261122-031503-b-3333"


def new_run(runs_dir: Path, run_id: str = FIRST, now_s: float = 1.0) -> RunFolder:
    return write_run_folder(make_launch(runs_dir, run_id=run_id), now_s=now_s)


def running(run: RunFolder, **changes: object) -> RunFolder:
    """A run left as running by a launcher that this process stands in for."""
    run.logs(1).mkdir(parents=True)
    me = this_process()
    state = RunState(
        run_id=run.root.name,
        status=Status.RUNNING,
        attempt=1,
        created_at_s=1.0,
        updated_at_s=2.0,
        launcher_pid=me.pid,
        launcher_start=me.start_ticks,
        host=socket.gethostname(),
    )
    write_record(run.state, dataclasses.replace(state, **changes))  # type: ignore[arg-type]
    return run


def test_a_run_id_sorts_by_time_and_says_what_runs() -> None:
    spec = make_spec(method=MethodKind.QLORA, shard=ShardKind.ZERO3)
    now = datetime(2026, 11, 22, 3, 15, 2)
    assert new_run_id(spec, now, "3f9a") == "20261122-031502-smollm2-135m-qlora-zero3-3f9a"
    odd = dataclasses.replace(spec, model=dataclasses.replace(spec.model, name="my model/../x"))
    assert new_run_id(odd, now, "3f9a") == "20261122-031502-my-model-..-x-qlora-zero3-3f9a"


def test_the_folder_is_the_plan(tmp_path: Path) -> None:
    launch = make_launch(tmp_path / "runs")
    run = write_run_folder(launch, now_s=7.0)
    assert sorted(path.name for path in run.root.iterdir()) == [
        "job.json",
        "launch.json",
        "launch.sha256",
        "memory_plan.json",
        "state.json",
    ]
    assert run.launch_hash.read_text() == f"{launch.hash}  launch.json\n"
    assert content_hash(run.launch.read_text()) == launch.hash
    assert run.job.read_text() == launch.files["job.json"]
    assert read_launch_plan(run) == launch
    state = read_record(run.state, RunState)
    assert state is not None
    assert (state.status, state.attempt, state.created_at_s) == (Status.RENDERED, 0, 7.0)
    assert list((tmp_path / "runs").iterdir()) == [run.root]


def test_a_run_is_written_once(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    before = run.launch.read_bytes()
    with pytest.raises(SubmitError, match="exists already"):
        new_run(tmp_path)
    assert run.launch.read_bytes() == before


@pytest.mark.parametrize("name", ["job.json", "memory_plan.json", "launch.json", "launch.sha256"])
def test_whatever_changed_is_named(tmp_path: Path, name: str) -> None:
    run = new_run(tmp_path)
    path = run.root / name
    path.write_text(path.read_text().translate(str.maketrans("12345678", "23456789")))
    changed = "launch.json" if name == "launch.sha256" else name
    with pytest.raises(SubmitError, match=rf"^(job\.json, |memory_plan\.json, )*{changed}.* in .* changed after"):
        read_launch_plan(run)


def test_a_folder_that_was_moved_or_is_none(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    moved = run.root.rename(tmp_path / "elsewhere")
    with pytest.raises(SubmitError, match="moved since"):
        read_launch_plan(RunFolder(moved))
    with pytest.raises(SubmitError, match="is no run folder"):
        read_launch_plan(RunFolder(tmp_path))


def test_a_run_by_id_beginning_path_or_last(tmp_path: Path) -> None:
    for number, name in enumerate((FIRST, SECOND, THIRD)):
        new_run(tmp_path, name, now_s=float(10 - number))
    (tmp_path / ".20261122-half-written").mkdir()
    (tmp_path / "notes").mkdir()
    assert [run.run_id for run in list_runs(tmp_path)] == [THIRD, SECOND, FIRST]  # by the time of creation
    assert resolve_run(tmp_path, SECOND).root == tmp_path / SECOND
    assert resolve_run(tmp_path, SECOND[:-7]).root == tmp_path / SECOND
    assert resolve_run(tmp_path, f"{tmp_path}/{THIRD}").root == tmp_path / THIRD
    assert resolve_run(tmp_path, "last").root == tmp_path / FIRST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("20261122", f"run=20261122 is the beginning of 2 runs: say more: {FIRST}, {SECOND}"),
        ("x", f"run=x names no run in RUNS: its latest are {FIRST}, {SECOND}; 'last' or a path will do as well"),
        ("", f"run= names no run in RUNS: its latest are {FIRST}, {SECOND}; 'last' or a path will do as well"),
        ("./nowhere", "run=nowhere is no run folder: a run folder holds launch.json"),
    ],
)
def test_a_run_that_is_not_there(tmp_path: Path, text: str, message: str) -> None:
    new_run(tmp_path, FIRST)
    new_run(tmp_path, SECOND)
    with pytest.raises(InputError) as caught:
        resolve_run(tmp_path, text)
    assert str(caught.value) == message.replace("RUNS", str(tmp_path))


def test_no_runs_at_all(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "runs") == ()
    with pytest.raises(InputError, match=r"start one with python launch\.py"):
        resolve_run(tmp_path / "runs", "last")


def test_rendered_and_running(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert summarise(run).status is Status.RENDERED
    assert summarise(running(run)).status is Status.RUNNING


def test_markers_count_first(tmp_path: Path) -> None:
    run = running(new_run(tmp_path))
    write_record(run.stopped(1), Stopped(attempt=1, time_s=1.0, step=4, cause="SIGTERM", checkpoint=None))
    summary = summarise(run)
    assert (summary.status, summary.reason) == (Status.STOPPED, "stopped after step 4 (SIGTERM)")
    write_record(run.finished(1), FINISHED)
    assert summarise(run).status is Status.FINISHED
    with pytest.raises(InputError, match=rf"^run={FIRST} is finished"):
        start_attempt(run)


def test_failed_only_where_it_is_proven(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    gone = this_process().start_ticks + 1
    assert summarise(running(run, launcher_start=gone)).status is Status.FAILED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"host": "another"}, "it was started on another, and only that host can tell"),
        ({"launcher_pid": None}, "state.json names no launcher"),
        ({"attempt": 7}, "state.json does not tell of attempt 1"),
    ],
)
def test_unknown_otherwise(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    summary = summarise(running(new_run(tmp_path), **changes))
    assert (summary.status, summary.reason) == (Status.UNKNOWN, reason)


def test_unknown_while_ranks_of_a_dead_launcher_live(tmp_path: Path) -> None:
    import subprocess
    import sys

    run = running(new_run(tmp_path), launcher_start=this_process().start_ticks + 1)
    environ = {**os.environ, "FITLAUNCH_RUN": str(run.root)}
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environ)
    try:
        summary = summarise(run)
        assert (summary.status, summary.reason) == (
            Status.UNKNOWN,
            "its launcher is gone, but 1 of its processes still run",
        )
        with pytest.raises(SubmitError, match=rf"still running \(pids {rank.pid}\)"):
            _start_without_waiting(run)
        assert cancel(run).status is Status.FAILED
        assert rank.wait(timeout=10) == -15
        with pytest.raises(InputError, match=rf"^run={FIRST} is not running: it is failed"):
            cancel(run)
    finally:
        rank.kill()
        rank.wait()


def _start_without_waiting(run: RunFolder) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launcher.targets.local.LEFTOVER_WAIT_S", 0.0)
        start_attempt(run)


def test_a_state_that_nobody_can_read(tmp_path: Path) -> None:
    run = running(new_run(tmp_path))
    run.state.write_text("{")
    assert summarise(run).status is Status.UNKNOWN
