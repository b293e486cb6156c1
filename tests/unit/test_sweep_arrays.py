"""Which cells share an array, what that asks for, and the files it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.assemble import assemble
from launcher.compose import make_spec
from launcher.devices import listed_devices
from launcher.paths import conf_dir
from launcher.planner.plan import make_plan
from launcher.planner.types import MemoryPlan
from launcher.render.asked import asked_of_slurm
from launcher.runs.layout import RunFolder
from launcher.runs.sweeps import SweepFolder
from launcher.sweeps.arrays import Element, array_script, memory_class, plan_arrays
from launcher.units import GIB
from tests.composed import host

ON_SLURM = ("cluster=slurm", "model=llama3-8b", "device=h100-80g", "gpus=8", "method=lora", "shard=fsdp")
FOLDER = SweepFolder(Path("/shared/runs/sweeps/20261122-031502-sweep-3f9a"))


def planned(*overrides: str) -> MemoryPlan:
    spec = make_spec(assemble([*ON_SLURM, *overrides], conf_dir()), host())
    return make_plan(spec, listed_devices(), propose=False)


def element(number: int, plan: MemoryPlan, submission: int = 1) -> Element:
    return Element(number=number, run=RunFolder(Path(f"/shared/runs/run-{number}")), plan=plan, submission=submission)


def with_ram(plan: MemoryPlan, gib: int) -> MemoryPlan:
    return dataclasses.replace(plan, host_ram_bytes_per_node=gib * GIB)


@pytest.fixture(scope="module")
def plan() -> MemoryPlan:
    return planned()


def cells_of(elements: list[Element], most: int | None = None) -> list[tuple[int, ...]]:
    return [tuple(each.number for each in array.elements) for array in plan_arrays(elements, most)]


def test_cells_that_differ_in_what_they_train_are_one_array(plan: MemoryPlan) -> None:
    others = [planned("train.learning_rate=1e-5"), planned("train.seed=7"), planned("method.rank=32")]
    assert cells_of([element(number, each) for number, each in enumerate([plan, *others])]) == [(0, 1, 2, 3)]


def test_each_shape_is_an_array(plan: MemoryPlan) -> None:
    two_nodes, other_time = planned("nodes=2"), planned("cluster.time=60")
    elements = [
        element(0, plan),
        element(1, two_nodes),
        element(2, plan),
        element(3, other_time),
        element(4, two_nodes),
    ]
    assert cells_of(elements) == [(0, 2), (1, 4), (3,)]


def test_memory_of_another_class_is_another_array_and_the_most_counts(plan: MemoryPlan) -> None:
    """Asked are 125 % and 2 GiB: 27, 32 and 64.5 rounded up to 65."""
    elements = [element(0, with_ram(plan, 20)), element(1, with_ram(plan, 24)), element(2, with_ram(plan, 50))]
    first, second = plan_arrays(elements, None)
    assert [asked_of_slurm(each.plan).memory_bytes_per_node // GIB for each in elements] == [27, 32, 65]
    assert ([each.number for each in first.elements], first.asked.memory_bytes_per_node) == ([0, 1], 32 * GIB)
    assert first.asked.memory_words == "24.00 GiB planned, with room (the most of 2 cells)"
    assert ([each.number for each in second.elements], second.asked.memory_bytes_per_node) == ([2], 65 * GIB)


@pytest.mark.parametrize(("gib", "expected"), [(0, 0), (1, 1), (2, 2), (3, 4), (32, 32), (33, 64), (65, 128)])
def test_classes(gib: int, expected: int) -> None:
    assert memory_class(gib * GIB) == expected


def test_an_array_is_no_longer_than_the_site_allows(plan: MemoryPlan) -> None:
    elements = [element(number, plan) for number in range(5)]
    assert cells_of(elements, 2) == [(0, 1), (2, 3), (4,)]
    assert cells_of(elements, 5) == [(0, 1, 2, 3, 4)]


def test_runs_of_other_submissions_are_kept_apart(plan: MemoryPlan) -> None:
    arrays = plan_arrays([element(0, plan, 2), element(1, plan), element(2, plan, 2)], None)
    assert [(array.submission, [each.number for each in array.elements]) for array in arrays] == [(2, [0, 2]), (1, [1])]


def test_the_script_of_an_array(golden: Callable[[str, str], None]) -> None:
    elements = [element(number, planned("cluster.max_parallel=8", f"train.seed={number}")) for number in range(64)]
    (array,) = plan_arrays(elements, 1001)
    golden("launch/array.sh", array_script(FOLDER, 1, array, "/venv/bin/python"))
