"""The folder of a sweep: which one is meant, what is in it, and what people see of it."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from launcher.errors import InputError, JobFailed
from launcher.report.console import make_console
from launcher.report.sweep_progress import SweepProgress
from launcher.report.sweeps import Standing, number_ranges, show_sent, show_standings, standings_json
from launcher.runs.outcome import Outcome
from launcher.runs.records import EvalMetrics, Event, Status, TrainMetrics, write_record
from launcher.runs.registry import RunSummary
from launcher.runs.sweeps import (
    ArraySubmission,
    Cell,
    Sweep,
    SweepFolder,
    list_sweeps,
    read_arrays,
    resolve_sweep,
    sweep_folder,
)
from launcher.spec import ClusterKind
from tests.markers import STEP

Golden = Callable[[str, str], None]
CURSOR = re.compile(r"\x1b\[[0-9?]*[A-Za-z]|\r")
RATES = ("1e-4", "2e-4", "5e-4", "1e-3")
CELLS = tuple(
    Cell(
        number=number,
        overrides=("gpus=4", f"train.learning_rate={rate}"),
        run_id=f"20261122-031502-tiny-lora-ddp-3f9a-{number:03d}",
        verdict="fits",
        dropped=number == 3,
    )
    for number, rate in enumerate(RATES)
)
SWEEP = Sweep(
    sweep_id="20261122-031502-sweep-3f9a", created_at_s=1_795_317_302.0, cluster=ClusterKind.SLURM, cells=CELLS
)


def array(number: int, *cells: int, job_id: str | None = "17") -> ArraySubmission:
    return ArraySubmission(
        number=number, cells=cells, submission=1, job_name=f"fitlaunch-sweep-{number}", time_s=1.0, job_id=job_id
    )


def write_sweeps(runs_dir: Path, *names: str) -> None:
    for name in names:
        write_record(sweep_folder(runs_dir, name).record, SWEEP)


def test_the_sweep_that_is_meant(tmp_path: Path) -> None:
    write_sweeps(tmp_path, "20261122-031502-sweep-3f9a", "20261122-041502-sweep-77aa", "20261123-000000-sweep-1111")
    (tmp_path / "sweeps" / ".half-written").mkdir()
    assert [folder.root.name[-4:] for folder in list_sweeps(tmp_path)] == ["3f9a", "77aa", "1111"]
    assert resolve_sweep(tmp_path, "last").root.name == "20261123-000000-sweep-1111"
    assert resolve_sweep(tmp_path, "20261122-04").root.name == "20261122-041502-sweep-77aa"
    for text, rule in (
        ("20261122", "is the beginning of 2 sweeps"),
        ("nope", "names no sweep"),
        ("", "names no sweep"),
    ):
        with pytest.raises(InputError, match=rule):
            resolve_sweep(tmp_path, text)
    with pytest.raises(InputError, match="it has none"):
        resolve_sweep(tmp_path / "empty", "last")


def test_arrays_are_read_in_their_order(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    for number in (10, 2, 1):
        write_record(folder.array(number), array(number, 0))
    folder.script(1).write_text("#!/bin/bash\n")
    assert [each.number for each in read_arrays(folder)] == [1, 2, 10]


@pytest.mark.parametrize(
    ("numbers", "words"), [((), ""), ((3,), "3"), ((0, 1, 2), "0-2"), ((0, 1, 4, 6, 7), "0-1, 4, 6-7")]
)
def test_ranges(numbers: tuple[int, ...], words: str) -> None:
    assert number_ranges(numbers) == words


def test_what_was_sent(golden: Golden) -> None:
    out = io.StringIO()
    folder = SweepFolder(Path("/shared/runs/sweeps/20261122-031502-sweep-3f9a"))
    show_sent(folder, [array(1, 0, 1, 2, 5), array(2, 4, job_id="18")], make_console(out))
    golden("report/sweep-sent.txt", out.getvalue())


def summary(number: int, status: Status, reason: str = "", job_id: str | None = None) -> RunSummary:
    run_id = CELLS[number].run_id
    return RunSummary(
        run_id=run_id,
        run_dir=Path("/shared/runs") / run_id,
        status=status,
        attempt=1,
        created_at_s=0.0,
        exit_code=None,
        reason=reason,
        job_id=job_id,
    )


STANDINGS = (
    Standing(cell=CELLS[0], summary=summary(0, Status.FINISHED, job_id="17_0"), loss_before=2.5, loss_after=1.23456),
    Standing(cell=CELLS[1], summary=summary(1, Status.RUNNING, job_id="17_1"), progress="12/100"),
    Standing(cell=CELLS[2], summary=summary(2, Status.FAILED, "Traceback\n  ValueError: no", job_id="17_2")),
    Standing(cell=CELLS[3], summary=None),
)


def test_how_cells_stand(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    out = io.StringIO()
    show_standings(SWEEP, STANDINGS, make_console(out))
    golden("report/sweep-status.txt", out.getvalue())
    golden("report/sweep-status.json", standings_json(SWEEP, STANDINGS) + "\n")


# The sweep that runs here


def outcome(status: Status, cause: str = "") -> Outcome:
    return Outcome(
        run_dir=Path("/runs/x"),
        status=status,
        exit_code=0,
        attempt=1,
        finished=None,
        stopped=None,
        failures=(),
        first_cause=cause,
        log_tail=(),
        measurements=(),
    )


def drive(console: Console, clock: list[float]) -> None:
    """Four cells: one ends, one fails, one is under way, one is left out."""
    with SweepProgress(console, CELLS, clock=lambda: clock[0]) as progress:
        progress.left_out(3, "does not fit")
        progress.started(0, " on GPU 0,1")
        progress.started(1, " on GPU 2,3")
        progress.draw()
        clock[0] = 12.0
        progress.rows[1].update(events=[Event(time_s=1.0, source="rank 0", attempt=1, stage="load model")], metrics=[])
        progress.ended(0, outcome(Status.FAILED, "rank 1: ValueError:\n  told to fail"))
        progress.started(2, " on GPU 0,1")
        progress.draw()
        clock[0] = 20.0
        progress.rows[1].update(events=[], metrics=[step(1, 13.0), step(4, 19.0), evaluation(4)])
        progress.ended(2, None, JobFailed("no rank was started:\nImportError: torch"))
        progress.draw()


def step(number: int, time_s: float) -> TrainMetrics:
    return dataclasses.replace(STEP, time_s=time_s, step=number, num_steps=10, loss=2.0 / number)


def evaluation(number: int) -> EvalMetrics:
    return EvalMetrics(time_s=19.5, attempt=1, step=number, loss=1.5, num_samples=8)


def test_progress_in_a_pipe(golden: Golden) -> None:
    out = io.StringIO()
    drive(make_console(out), [0.0])
    golden("report/sweep-progress.txt", out.getvalue())


def test_progress_on_a_terminal(golden: Golden) -> None:
    """Every state of the redrawn table, one after the other."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20, color_system=None, legacy_windows=False)
    drive(console, [0.0])
    golden("report/sweep-progress-terminal.txt", CURSOR.sub("", out.getvalue()))
