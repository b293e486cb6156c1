"""What real ranks do when a scheduler signals all processes of a job at once, and when their attempt was given up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.checkpoint import MANIFEST, verify
from jobs.fence import Superseded
from jobs.job import Job
from jobs.journal import Journal
from jobs.start import Start
from jobs.stop import STOP_SIGNALS, StopRequest
from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_markers
from launcher.runs.processes import PROC, ProcessId, descendants, is_alive, wait_until_gone
from launcher.runs.records import AttemptStart, write_record
from launcher.spec import JobSpec
from tests.forked_ranks import ForkedRanks
from tests.ranks import environment, log_text, losses, make_spec, wait_for, wait_for_step, write_run
from tests.tiny import make_alpaca_file, make_tiny_model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(180)]
MANY_STEPS = 100_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny_model(root / "model")
    make_alpaca_file(root / "data.json")
    return root


def start(run: RunFolder, spec: JobSpec) -> ForkedRanks:
    run.logs(1).mkdir(parents=True)
    ranks = ForkedRanks(run.root, environment(run, spec, 1), spec.world_size, run.logs(1) / "ranks.log")
    wait_for_step(run, ranks, 3)  # type: ignore[arg-type]
    return ranks


def blocked_signals(process: ProcessId) -> set[int]:
    text = (PROC / str(process.pid) / "status").read_text()
    mask = int(text.partition("SigBlk:")[2].split()[0], 16)
    return {number for number in range(1, signal.NSIG) if mask >> (number - 1) & 1}


def accept_another_attempt(run: RunFolder) -> None:
    write_record(
        run.attempt_start(2), AttemptStart(attempt=2, time_s=time.time(), head="elsewhere", port=1, num_nodes=2)
    )


def test_a_term_to_every_process_costs_no_step(tiny: Path, tmp_path: Path) -> None:
    """Ranks and the processes that load their data, twice: Slurm's own, and torchrun's that passes it on."""
    make_alpaca_file(tmp_path / "data.json", num_rows=2_000)  # one epoch, and its processes, outlast the test
    spec = make_spec(tiny / "model", tmp_path / "data.json", max_steps=MANY_STEPS, dataloader_workers=1)
    run = write_run(tmp_path / "signalled", spec)
    ranks = start(run, spec)
    everyone = descendants(ranks.pid)
    assert len(everyone) == 4, "two ranks, each with a process that loads its data"
    loaders = [each for each in everyone if (PROC / str(each.pid) / "comm").read_text() == "pt_data_worker\n"]
    assert [blocked_signals(each) & set(STOP_SIGNALS) for each in loaders] == [set(STOP_SIGNALS)] * 2
    for _ in range(2):
        for process in everyone:
            os.kill(process.pid, signal.SIGTERM)
    assert wait_for(ranks) == 0, log_text(run)
    stopped = read_markers(run, 1).stopped
    assert stopped is not None
    assert stopped.cause == "SIGTERM"
    assert stopped.step == max(losses(run))
    assert stopped.checkpoint is not None
    assert verify(Path(stopped.checkpoint)).step == stopped.step
    assert wait_until_gone(lambda: [each for each in everyone if is_alive(each)], timeout_s=10) == ()


def test_all_ranks_of_a_superseded_attempt_end_after_the_same_step(tiny: Path) -> None:
    spec = make_spec(tiny / "model", tiny / "data.json", max_steps=MANY_STEPS)
    run = write_run(tiny / "superseded", spec)
    ranks = start(run, spec)
    accept_another_attempt(run)
    assert wait_for(ranks) == 1
    failures = read_markers(run, 1).failures
    assert {failure.rank for failure in failures} == {0, 1}
    assert {failure.error_type for failure in failures} == {"Superseded"}
    assert {failure.message for failure in failures} == {
        f"a later attempt of this run was started: step {max(losses(run)) + 1} is not kept"
    }
    assert list(run.checkpoints.iterdir()) == []
    assert not run.result.exists()
    assert not run.stopped(1).exists()


def test_a_superseded_attempt_completes_nothing(tiny: Path, tmp_path: Path) -> None:
    """Where the later attempt came while this one was saving."""
    spec = make_spec(tiny / "model", tiny / "data.json", keep_checkpoints=1)
    run = write_run(tmp_path / "run", spec)
    own = Start(attempt=1, plan_hash="0", launcher=None, rank=0, local_rank=0, world_size=2, job_id="17")
    journal = Journal(run=run, start=own)
    job = Job(spec=spec, run=run, start=own, journal=journal, request=StopRequest(run.stop_file(1)))
    folders = [run.checkpoints / f"checkpoint-{step}" for step in (1, 2, 3)]
    for step, folder in enumerate(folders, start=1):
        folder.mkdir(parents=True)
        (folder / "states.bin").write_bytes(b"states")
        job.trainer = SimpleNamespace(state=SimpleNamespace(global_step=step))  # type: ignore[assignment]
        if step == 3:
            accept_another_attempt(run)
            with pytest.raises(Superseded, match="attempt 1 was superseded by attempt 2"):
                job.complete_checkpoint(folder)
        else:
            job.complete_checkpoint(folder)
    assert not folders[0].exists(), "it was rotated away while that was this attempt's to do"
    assert (verify(folders[1]).job_id, verify(folders[1]).attempt) == ("17", 1)
    assert not (folders[2] / MANIFEST).exists()
    with pytest.raises(Superseded):
        job.write_manifest(run.result)
