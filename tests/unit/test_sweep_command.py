"""What a sweep refuses before anything is written, what mode=render leaves, and how long a follower waits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest

from launcher.assemble import assemble
from launcher.errors import DoesNotFit, FitlaunchError, InputError
from launcher.paths import conf_dir
from launcher.report.console import make_console
from launcher.report.sweep_progress import SweepProgress
from launcher.runs.layout import RunFolder
from launcher.runs.records import Status, Submission, write_record
from launcher.runs.sweeps import Sweep, SweepFolder, list_sweeps, read_sweep
from launcher.scheduler.jobs import Job
from launcher.spec import ClusterKind
from launcher.sweeps.cells import PlannedCell, number_cells
from launcher.sweeps.command import SweepCommand
from launcher.sweeps.follow import UNKNOWN_S, Follower
from launcher.sweeps.slurm import together, write_cells
from launcher.targets.space import DiskNeed
from launcher.units import GIB
from launcher.workflow import Prepared, prepare
from tests.composed import host

ROOT = Path(__file__).parents[2]
CARD = ("device=rtx4090", "gpus=8", "model=llama3-8b", "mode=render")
ON_SLURM = ("cluster=slurm", "device=h100-80g", "gpus=8", "model=llama3-8b")


def prepared(*overrides: str) -> Prepared:
    return prepare(overrides, lambda more: assemble([*overrides, *more], conf_dir()), host("rtx4090"))


def refusal(*cells: Prepared, wants_values: bool = False) -> FitlaunchError:
    with pytest.raises(FitlaunchError) as caught:
        SweepCommand(make_console(io.StringIO())).carry_out(cells, wants_values=wants_values)
    return caught.value


def test_cells_that_do_not_fit_refuse_the_sweep(tmp_path: Path) -> None:
    fits, too_large = (prepared(*CARD, f"method={method}", f"runs_dir={tmp_path}") for method in ("qlora", "full"))
    error = refusal(fits, too_large, too_large)
    assert isinstance(error, DoesNotFit)
    assert str(error) == "2 of 3 jobs do not fit; nothing was started (sweep.drop=true leaves them out)"
    assert str(refusal(too_large, too_large)) == "2 of 2 jobs do not fit; nothing was started"
    assert list(tmp_path.iterdir()) == []


def test_they_are_left_out_where_the_user_says_so(tmp_path: Path) -> None:
    where = (f"runs_dir={tmp_path}", "sweep.drop=true")
    cells = [prepared(*CARD, f"method={method}", *where) for method in ("full", "qlora", "full")]
    assert [cell.refused for cell in cells] == [True, False, True]
    command = SweepCommand(make_console(io.StringIO()))
    values, error = command.carry_out(cells, wants_values=False)
    assert error is None
    assert isinstance(values[0], DoesNotFit)
    (folder,) = list_sweeps(tmp_path)
    records = read_sweep(folder).cells
    assert [(cell.number, cell.dropped) for cell in records] == [(0, True), (1, False), (2, True)]
    assert [folder.run(cell).launch.is_file() for cell in records] == [False, True, False]
    assert str(refusal(cells[0], cells[2])) == "2 of 2 jobs do not fit; nothing was started"


def test_a_second_batch_joins_the_sweep(tmp_path: Path) -> None:
    command = SweepCommand(make_console(io.StringIO()))
    for rate in ("1e-4", "2e-4"):
        cells = [prepared(*CARD, "method=qlora", f"runs_dir={tmp_path}", f"train.learning_rate={rate}")]
        command.carry_out(cells * 2, wants_values=True)
    (folder,) = list_sweeps(tmp_path)
    cells_now = read_sweep(folder).cells
    assert [cell.number for cell in cells_now] == [0, 1, 2, 3]
    assert len({cell.run_id for cell in cells_now}) == 4


WRONG = {
    "mode": ((*ON_SLURM, "mode=plan"), (*ON_SLURM, "mode=render")),
    "runs_dir": ((*ON_SLURM, "runs_dir=/a"), (*ON_SLURM, "runs_dir=/b")),
    "cluster": ((*CARD, "method=qlora"), (*ON_SLURM, "mode=render")),
    "sweep": ((*CARD, "sweep.drop=true"), CARD),
    "sweep.parallel": ((*ON_SLURM, "sweep.parallel=2"),),
    "hydra/sweeper": (ON_SLURM,),
}


@pytest.mark.parametrize("field", WRONG)
def test_what_a_sweep_cannot_be(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(*(prepared(*words) for words in WRONG[field]), wants_values=field == "hydra/sweeper")
    assert isinstance(error, InputError)
    assert [problem.field for problem in error.problems] == [field]
    assert list(tmp_path.iterdir()) == []


def test_a_search_may_plan_and_may_wait() -> None:
    """Neither needs losses that are not there."""
    command = SweepCommand(make_console(io.StringIO()))
    values, error = command.carry_out([prepared(*ON_SLURM, "mode=plan")], wants_values=True)
    assert (values, error) == ([None], None)


RENDER = """
import sys
from launcher.main import main
code = main()
print(sorted(name for name in ("torch", "transformers", "deepspeed", "peft") if name in sys.modules))
sys.exit(code)
"""


def test_a_rendered_sweep_is_a_folder_and_an_sbatch_line_and_imports_no_torch(tmp_path: Path) -> None:
    command = (sys.executable, "-c", RENDER, "-m", *ON_SLURM, "mode=render", "train.seed=1,2,3", "cluster.mem=64G")
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    (folder,) = list_sweeps(tmp_path / "runs")
    runs = [folder.run(cell) for cell in read_sweep(folder).cells]
    assert folder.cells_file(1).read_text() == "".join(f"{run.root}\n" for run in runs)
    assert sorted(path.name for path in folder.root.iterdir()) == ["array-1.sh", "cells-1.txt", "sweep.json"]
    assert f"\n  sbatch runs/sweeps/{folder.root.name}/array-1.sh 1\n" in done.stderr
    seeds = [json.loads(run.job.read_text())["train"]["seed"] for run in runs]
    assert seeds == [1, 2, 3]
    assert subprocess.run(("bash", "-n", str(folder.script(1))), timeout=10, check=False).returncode == 0


def test_what_all_cells_write_is_one_need() -> None:
    saving = DiskNeed(checkpoint_bytes=3 * GIB, result_bytes=GIB, num_checkpoints=3, num_at_most=3)
    not_saving = DiskNeed(checkpoint_bytes=2 * GIB, result_bytes=GIB, num_checkpoints=0, num_at_most=1)
    assert together([saving, saving]).least_bytes == 20 * GIB
    assert together([not_saving, not_saving]).least_bytes == 2 * GIB
    assert together([saving, not_saving]).least_bytes == 11 * GIB


# Following


class Queue:
    """What Slurm says; None where it is silent."""

    def __init__(self, *jobs: Job) -> None:
        self.told: Mapping[str, Job] | None = {job.job_id: job for job in jobs}

    def jobs(self) -> Mapping[str, Job] | None:
        return self.told


def job(job_id: str, state: str) -> Job:
    return Job(job_id=job_id, name="fitlaunch-x", state=state, reason="None", nodes="", start="")


@pytest.fixture
def submitted(tmp_path: Path) -> tuple[SweepFolder, tuple[PlannedCell, ...]]:
    """Two cells that are the elements of job 17."""
    cells = number_cells(
        [prepared(*ON_SLURM, f"runs_dir={tmp_path}")] * 2, first=0, now=datetime(2026, 11, 22), token="3f9a"
    )
    write_cells(cells)
    folder = SweepFolder(tmp_path / "sweeps" / "s")
    records = tuple(cell.record for cell in cells)
    write_record(folder.record, Sweep(sweep_id="s", created_at_s=0.0, cluster=ClusterKind.SLURM, cells=records))
    for task, cell in enumerate(cells):
        submission = Submission(
            number=1, cluster="slurm", job_name="x", time_s=0.0, job_id=f"17_{task}", array_task=task, sweep="s"
        )
        write_record(RunFolder(tmp_path / cell.run_id).submission, submission)
    return folder, cells


def test_a_follower_waits_for_what_it_does_not_know_but_not_for_ever(
    submitted: tuple[SweepFolder, tuple[PlannedCell, ...]],
) -> None:
    folder, cells = submitted
    now, queue = [0.0], Queue(job("17_0", "RUNNING"), job("17_1", "PENDING"))
    progress = SweepProgress(make_console(io.StringIO()), [cell.record for cell in cells], clock=lambda: now[0])
    follower = Follower(folder, cells, progress, queue, clock=lambda: now[0])
    assert not follower.look()
    assert [row.started_at_s for row in progress.rows] == [0.0, None]

    queue.told = {"17_0": job("17_0", "FAILED")}  # and of the other it knows nothing any more
    assert not follower.look()
    assert [row.outcome and row.outcome.status for row in progress.rows] == [Status.FAILED, None]
    queue.told = None
    now[0] += 10 * UNKNOWN_S
    assert not follower.look()  # a scheduler that is silent proves nothing, and the time begins again
    queue.told = {}
    assert not follower.look()
    now[0] += UNKNOWN_S + 1
    assert follower.look()
    assert [row.outcome and row.outcome.status for row in progress.rows] == [Status.FAILED, Status.UNKNOWN]
