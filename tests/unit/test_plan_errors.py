"""`fitlaunch ls`: how far the plans of past runs were off, run by run and together."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from launcher.report.console import make_console
from launcher.report.outcome import write_report
from launcher.report.plan_errors import PlanError, run_errors, summary
from launcher.report.runs_table import runs_json, show_runs
from launcher.runs.layout import RunFolder
from launcher.runs.records import Status
from launcher.runs.registry import RunSummary
from launcher.spec import MethodKind, MethodSpec, ShardKind
from launcher.units import GIB, MIB
from tests.report_fixtures import CPU, run_folder, spec

ON_GPU = spec(gpus_per_node=4)
ON_CPU = spec(method=MethodSpec(kind=MethodKind.FULL), device=CPU, gpus_per_node=2, shard=ShardKind.DDP)


def past_run(root: Path, name: str, *, gpu: bool = True, status: Status = Status.FINISHED) -> RunSummary:
    """A run that ended, with its report."""
    outcome = run_folder(root / name, ON_GPU if gpu else ON_CPU, status=status, gpu=gpu)
    if not gpu:  # shorter than planned for
        short = tuple(dataclasses.replace(m, num_tokens_measured_step=1024) for m in outcome.measurements)
        outcome = dataclasses.replace(outcome, measurements=short)
    write_report(outcome)
    reason = "rank 3 ran out of GPU memory" if status is Status.FAILED else ""
    return RunSummary(
        run_id=name, run_dir=root / name, status=status, attempt=1, created_at_s=0.0, exit_code=0, reason=reason
    )


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunSummary, ...]:
    monkeypatch.setattr("launcher.report.runs_table._local_time", lambda _: "2026-01-01 12:00")
    rendered = RunSummary(
        run_id="d-rendered", run_dir=tmp_path / "d", status=Status.RENDERED, attempt=0, created_at_s=0.0,
        exit_code=None, reason="",
    )  # fmt: skip
    return (
        past_run(tmp_path, "a-gpu"),
        past_run(tmp_path, "b-cpu", gpu=False),
        past_run(tmp_path, "c-failed", status=Status.FAILED),
        rendered,
    )


def test_errors_are_in_percent_of_what_was_measured(runs: tuple[RunSummary, ...]) -> None:
    found = run_errors(runs[0].run_dir)
    assert found is not None
    assert found.rank == 0
    assert found.full_length
    assert found.allocated is not None
    assert found.allocated.measured_bytes == 13 * GIB + 512 * MIB
    assert found.reserved is not None
    assert found.reserved.measured_bytes == 14 * GIB
    assert found.process is not None
    assert found.process.measured_bytes == 14 * GIB + 512 * MIB
    off = PlanError(planned_bytes=995, measured_bytes=1000)
    assert (off.percent, PlanError(planned_bytes=1250, measured_bytes=1000).percent) == (-0.5, 25.0)


def test_on_a_cpu_there_is_nothing_reserved_and_the_process_is_resident(runs: tuple[RunSummary, ...]) -> None:
    found = run_errors(runs[1].run_dir)
    assert found is not None
    assert found.reserved is None
    assert found.process is not None
    assert found.process.measured_bytes == 13 * GIB + 768 * MIB
    assert not found.full_length


def test_a_run_that_measured_nothing_has_no_errors(runs: tuple[RunSummary, ...], tmp_path: Path) -> None:
    assert run_errors(runs[2].run_dir) is None  # failed before it could
    assert run_errors(tmp_path / "d") is None
    RunFolder(runs[0].run_dir).report.write_text('{"memory": "of another version"}')
    assert run_errors(runs[0].run_dir) is None


def test_the_summary_is_over_those_that_were_measured(runs: tuple[RunSummary, ...]) -> None:
    known = [found for run in runs if (found := run_errors(run.run_dir)) is not None]
    reserved = summary(known, "reserved")
    assert reserved is not None
    assert reserved.count == 1
    assert summary(known[1:], "reserved") is None
    allocated = summary(known, "allocated")
    assert allocated is not None
    assert (allocated.count, allocated.lowest <= allocated.median <= allocated.highest) == (2, True)


def test_the_list(runs: tuple[RunSummary, ...], tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    out = io.StringIO()
    show_runs(runs, tmp_path, make_console(out))
    golden("report/ls.txt", out.getvalue())


def test_the_list_as_json(runs: tuple[RunSummary, ...]) -> None:
    document = msgspec.json.decode(runs_json(runs))
    assert [run["run_id"] for run in document["runs"]] == ["a-gpu", "b-cpu", "c-failed", "d-rendered"]
    assert [run["plan_errors"] is None for run in document["runs"]] == [False, False, True, True]
    found = run_errors(runs[0].run_dir)
    assert found is not None
    assert found.allocated is not None
    assert document["runs"][0]["plan_errors"]["allocated"] == {
        "planned_bytes": found.allocated.planned_bytes,
        "measured_bytes": found.allocated.measured_bytes,
        "percent": found.allocated.percent,
    }
    assert document["plan_errors"]["reserved"]["count"] == 1
    assert document["plan_errors"]["process"]["count"] == 2
