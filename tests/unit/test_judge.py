"""The outcome of an attempt, from markers and from what the launcher saw."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from launcher.runs.judge import Ending, judge
from launcher.runs.layout import RunFolder
from launcher.runs.records import Failed, RankDeath, RankMeasurement, Status, Stopped, write_record
from tests.markers import FINISHED, STARTED

SEEN = Ending(is_asked=False, forced="", is_abandoned=False, deaths=(), agent="torchrun", agent_exit_code=1)
STOPPED = Stopped(attempt=1, time_s=1.0, step=4, cause="stop file", checkpoint=None)
FAILED = Failed(attempt=1, time_s=1.0, rank=1, host="h", error_type="ValueError", message="no", traceback="")
MARKERS: dict[str, Any] = {"finished": FINISHED, "stopped": STOPPED, "started": STARTED, "failed": FAILED}


@pytest.mark.parametrize(
    ("markers", "seen", "expected"),
    [
        (["started", "finished"], {}, (Status.FINISHED, 0, "")),
        # done before the stop was seen: done
        (["started", "finished"], {"is_asked": True}, (Status.FINISHED, 0, "")),
        # what is finished stays so, whatever an exit code or a rank says afterwards
        (["started", "finished", "failed"], {}, (Status.FINISHED, 0, "")),
        (["started", "stopped"], {"is_asked": True}, (Status.STOPPED, 130, "stopped after step 4 (stop file)")),
        # TERM from somebody else: a clean stop that the user did not ask for
        (["started", "stopped"], {}, (Status.STOPPED, 5, "stopped after step 4 (stop file)")),
        ([], {"is_asked": True}, (Status.STOPPED, 130, "stopped before the first step")),
        (["failed"], {"is_asked": True}, (Status.FAILED, 130, "rank 1 failed with ValueError: no")),
        (["started"], {"is_asked": True, "forced": "why"}, (Status.FAILED, 130, "ended by force: why")),
        (["started", "failed"], {}, (Status.FAILED, 5, "rank 1 failed with ValueError: no")),
        # exit code 0 and no marker is no success
        (
            ["started"],
            {"agent_exit_code": 0},
            (Status.FAILED, 5, "the ranks ended without a result; torchrun ended with exit code 0"),
        ),
        (
            ["started"],
            {"agent_exit_code": -9, "is_abandoned": True},
            (Status.FAILED, 5, "torchrun was killed by SIGKILL and left its ranks behind, and they were ended"),
        ),
        (
            ["started"],
            {"deaths": (RankDeath(rank=0, seen_at_s=1.0, exit_code=-7),)},
            (Status.FAILED, 5, "rank 0 was killed by SIGBUS: shared memory full"),
        ),
    ],
)
def test_outcome(tmp_path: Path, markers: list[str], seen: dict[str, Any], expected: tuple[Status, int, str]) -> None:
    run = RunFolder(tmp_path)
    for name in markers:
        path = run.failed(1, 1) if name == "failed" else run.attempt(1) / f"{name}.json"
        write_record(path, MARKERS[name])
    outcome = judge(run, 1, dataclasses.replace(SEEN, **seen))
    assert (outcome.status, outcome.exit_code, outcome.first_cause) == expected
    assert (outcome.finished is not None, outcome.stopped is not None) == ("finished" in markers, "stopped" in markers)
    assert outcome.failures == ((FAILED,) if "failed" in markers else ())


def test_the_log_of_the_rank_that_failed_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_record(run.failed(1, 1), FAILED)
    for rank, text in ((0, "peer closed"), (1, "\n".join(f"line {number}" for number in range(40)))):
        log = run.logs(1) / "id_x" / "attempt_0" / str(rank) / "stderr.log"
        log.parent.mkdir(parents=True)
        log.write_text(text)
    assert judge(run, 1, SEEN).log_tail == tuple(f"line {number}" for number in range(25, 40))


def test_measurements_come_by_rank(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    measured = [
        RankMeasurement(
            rank=rank,
            host="h",
            device="cpu",
            allocated_bytes=rank,
            reserved_bytes=None,
            process_bytes=None,
            rss_bytes=1,
            by_phase={},
        )
        for rank in range(12)
    ]
    for record in measured:
        write_record(run.measured(1, record.rank), record)
    assert judge(run, 1, SEEN).measurements == tuple(measured)
