"""The closed form against every recorded trace of the grid, and the intervals that plans print against both.

`python -m benchmarks.closed_form --recorded` prints the same comparison.
"""

from __future__ import annotations

import pytest

from benchmarks.grid.cases import Case, grid
from benchmarks.grid.compare import PEAK_BOUND, PERSISTENT_BOUND, Compared, compare
from benchmarks.grid.recorded import read_traces
from launcher.planner.types import Phase
from launcher.planner.verdict import CPU, ONE_RANK, confidence
from launcher.spec import ShardKind
from tests.planner_jobs import job

WANTED_TRACES = 200
TRACES = read_traces()
TRACED = [case for case in grid() if case.name in TRACES]


@pytest.fixture(scope="module")
def compared() -> list[Compared]:
    return [compare(case, TRACES[case.name], 0) for case in TRACED]


def test_the_grid_is_traced_and_has_every_cell() -> None:
    assert len(TRACED) >= WANTED_TRACES
    assert {(case.method, case.shard) for case in TRACED} == {(case.method, case.shard) for case in grid()}
    assert set(TRACES) <= {case.name for case in grid()}


def test_no_traced_job_is_out_of_bounds(compared: list[Compared]) -> None:
    out = {one.case.name: (one.peak_error, one.job_error, one.persistent_error) for one in compared if one.misses}
    assert out == {}
    assert PEAK_BOUND <= 0.08
    assert PERSISTENT_BOUND <= 0.03


def test_no_phase_of_a_traced_job_is_out_of_bounds(compared: list[Compared]) -> None:
    """But for saving under ZeRO-3, where an evaluation of a model of few layers leaves parameters gathered."""
    errors = {
        (one.case.name, phase): error
        for one in compared
        for phase, error in one.by_phase.items()
        if (one.case.shard, phase) != (ShardKind.ZERO3, Phase.SAVE)
    }
    assert len(errors) > 9 * WANTED_TRACES
    assert {key: error for key, error in errors.items() if abs(error) > PEAK_BOUND} == {}


def allowed_percent(case: Case) -> int:
    """What an interval has for the closed form's own error, beside what one GPU's is for."""
    return confidence(case.spec()).percent - ONE_RANK.percent


def test_intervals_for_several_gpus_take_in_every_traced_job(compared: list[Compared]) -> None:
    out = {one.case.name: one.job_error for one in compared if one.case.options.get("gpus", 1) > 1}
    wrong = {
        one.case.name: one.job_error
        for one in compared
        if one.case.name in out and 100 * abs(one.job_error) > allowed_percent(one.case)
    }
    assert len(out) >= WANTED_TRACES
    assert wrong == {}


def test_a_cpu_has_an_interval_of_its_own() -> None:
    assert confidence(job(device="cpu")) is CPU
