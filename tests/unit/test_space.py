"""The disk is asked before a run starts: refused where it cannot hold what is written, warned where it may not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launcher.errors import DoesNotFit
from launcher.planner.types import HostMoment, HostTerm, MemoryPlan
from launcher.targets.space import UNCOUNTED_BYTES, DiskNeed, check_disk, check_host_ram, disk_need, free_bytes
from launcher.units import GIB
from tests.launching import H100, make_memory_plan, make_spec

RUNS = Path("/data/runs")
NEED = DiskNeed(checkpoint_bytes=4 * GIB, result_bytes=GIB, num_checkpoints=3, num_at_most=3)


def plan(**train: object) -> MemoryPlan:
    spec = make_spec()
    changed = dataclasses.replace(spec, train=dataclasses.replace(spec.train, **train))  # type: ignore[arg-type]
    made = make_memory_plan(changed)
    return dataclasses.replace(made, checkpoint_bytes=4 * GIB, result_bytes=GIB)


@pytest.mark.parametrize(
    ("every", "steps", "planned", "at_most"),
    [(None, 10, 0, 1), (5, None, 3, 3), (5, 10, 1, 1), (5, 11, 2, 2), (5, 100, 3, 3), (5, 5, 0, 1)],
)
def test_checkpoints_that_stand_side_by_side(every: int | None, steps: int | None, planned: int, at_most: int) -> None:
    """keep_checkpoints=2, and the third is complete before the first is deleted; none is written at the last step."""
    found = disk_need(plan(save_every_steps=every, max_steps=steps, keep_checkpoints=2))
    assert (found.num_checkpoints, found.num_at_most) == (planned, at_most)
    assert (found.checkpoint_bytes, found.result_bytes) == (4 * GIB, GIB)


def test_what_is_written_for_certain_and_at_most() -> None:
    assert NEED.least_bytes == 13 * GIB
    assert NEED.most_bytes == 13 * GIB * 110 // 100 + UNCOUNTED_BYTES
    stopped = dataclasses.replace(NEED, num_checkpoints=0, num_at_most=1)
    assert (stopped.least_bytes, stopped.most_bytes) == (GIB, 5 * GIB * 110 // 100 + UNCOUNTED_BYTES)


def test_a_disk_that_cannot_hold_it_is_refused() -> None:
    with pytest.raises(DoesNotFit) as refused:
        check_disk(NEED, RUNS, 13 * GIB - 1)
    assert refused.value.exit_code == 3
    assert str(refused.value) == (
        "the run does not fit the disk: /data/runs has 13.00 GiB free, and the result takes 1.00 GiB and 3 checkpoints "
        "side by side 4.00 GiB each; nothing was started (runs_dir=DIR for another disk, train.keep_checkpoints, or "
        "fit=warn to start it all the same)"
    )


def test_a_disk_that_may_not_hold_it_is_warned_of() -> None:
    assert check_disk(NEED, RUNS, 13 * GIB) == (
        "the disk may be too small: /data/runs has 13.00 GiB free, and the result takes 1.00 GiB and 3 checkpoints "
        "side by side 4.00 GiB each"
    )
    assert check_disk(NEED, RUNS, GIB, refuse=False).startswith(
        "the run does not fit the disk: /data/runs has 1.00 GiB"
    )
    assert check_disk(NEED, RUNS, NEED.most_bytes) == ""


def test_a_run_that_saves_only_when_stopped() -> None:
    need = dataclasses.replace(NEED, num_checkpoints=0, num_at_most=1)
    assert check_disk(need, RUNS, 2 * GIB) == (
        "the disk may be too small: /data/runs has 2.00 GiB free, and the result takes 1.00 GiB, a checkpoint, should "
        "the run be stopped, 4.00 GiB"
    )


def test_host_ram_that_may_not_be_enough_is_warned_of() -> None:
    spec = make_spec(device=H100)
    term = HostTerm(
        name="gathered to be saved", size_bytes=100 * GIB, moments=(HostMoment.SAVING,), formula="", source=""
    )
    made = dataclasses.replace(make_memory_plan(spec), host_ram_bytes_per_node=120 * GIB, host_terms=(term,))
    assert check_host_ram(made, 120 * GIB) == ""
    assert check_host_ram(made, 64 * GIB) == (
        "the host may run out of RAM: 64.00 GiB are available and up to 120.00 GiB are needed, most of it for "
        "'gathered to be saved' (100.00 GiB); plan.explain=true shows every part"
    )
    on_cpu = dataclasses.replace(make_memory_plan(make_spec()), host_ram_bytes_per_node=120 * GIB)
    assert on_cpu.spec.device.kind == "cpu"
    assert check_host_ram(on_cpu, GIB) == ""


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there") > 0
