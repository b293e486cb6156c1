"""The outcome of a run put together from its folder alone, as `fitlaunch report` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import InputError
from launcher.report.past import past_outcome
from launcher.runs.layout import RunFolder
from launcher.runs.records import Failed, Status, Stopped, write_record
from launcher.runs.registry import summarise
from launcher.runs.state import write_state
from launcher.targets.folder import write_run_folder
from tests.launching import make_launch
from tests.markers import FINISHED
from tests.report_fixtures import measurement


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that was started once and left no state of its ending."""
    folder = write_run_folder(make_launch(tmp_path / "runs"), now_s=1_000.0)
    folder.logs(1).mkdir(parents=True)
    write_record(folder.measured(1, 0), measurement(0, gpu=False))
    return folder


def test_a_finished_run(run: RunFolder) -> None:
    write_record(run.finished(1), FINISHED)
    outcome = past_outcome(run, summarise(run))
    assert (outcome.status, outcome.exit_code, outcome.attempt) == (Status.FINISHED, 0, 1)
    assert (outcome.finished, outcome.first_cause) == (FINISHED, "")
    assert outcome.measurements == (measurement(0, gpu=False),)


def test_a_stopped_run_whose_launcher_was_killed(run: RunFolder) -> None:
    write_record(run.stopped(1), Stopped(attempt=1, time_s=1.0, step=3, cause="SIGTERM", checkpoint=None))
    outcome = past_outcome(run, summarise(run))
    assert (outcome.status, outcome.exit_code) == (Status.STOPPED, 130)
    assert outcome.first_cause == "stopped after step 3 (SIGTERM)"


def test_a_failed_run_says_what_its_launcher_said(run: RunFolder) -> None:
    write_state(run, Status.FAILED, attempt=1, exit_code=130, reason="ended by force: the user asked again")
    outcome = past_outcome(run, summarise(run))
    assert (outcome.exit_code, outcome.first_cause, outcome.diagnosis) == (
        130,
        "ended by force: the user asked again",
        None,
    )


def test_a_failed_run_is_diagnosed_from_what_its_ranks_left(run: RunFolder) -> None:
    write_state(run, Status.FAILED, attempt=1, exit_code=5, reason="its launcher was killed, and left no result")
    failure = Failed(
        attempt=1, time_s=1.0, rank=1, host="alpha", error_type="OutOfMemoryError", message="no", traceback="..."
    )
    write_record(run.failed(1, 1), failure)
    (run.logs(1) / "x_rank1.log").write_text("first\nlast\n")
    outcome = past_outcome(run, summarise(run))
    assert (outcome.status, outcome.exit_code) == (Status.FAILED, 5)
    assert outcome.first_cause == "rank 1 ran out of GPU memory"
    assert (outcome.failures, outcome.log_tail) == ((failure,), ("first", "last"))


def test_a_run_that_has_not_ended_has_no_outcome(tmp_path: Path) -> None:
    rendered = write_run_folder(make_launch(tmp_path / "runs"), now_s=1_000.0)
    with pytest.raises(InputError, match="has not ended: it is rendered"):
        past_outcome(rendered, summarise(rendered))
