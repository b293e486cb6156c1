"""Which cells of a sweep go to Slurm in one array: those that ask for the same. Pure.

All elements of an array share one script, and so one memory limit and one lead before the time limit: the largest
among them. Cells of very different need are kept apart, for a node's RAM that nobody uses is somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.planner.types import MemoryPlan
from launcher.render.asked import Asked, asked_of_slurm
from launcher.render.sbatch import Array, Script, job_script
from launcher.report.describe import plural
from launcher.runs.layout import RunFolder
from launcher.runs.sweeps import SweepFolder
from launcher.spec import ClusterSpec, JobSpec
from launcher.units import GIB, ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """A cell as an array takes it. submission: the number that its run has under it."""

    number: int
    run: RunFolder
    plan: MemoryPlan
    submission: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What all elements of an array have in common. memory_class: GiB asked for, up to the next power of two."""

    nodes: int
    gpus_per_node: int
    device_kind: str
    cluster: ClusterSpec
    memory_class: int
    submission: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepArray:
    """An array to be submitted. spec: of any of its cells, for what all of them share."""

    elements: tuple[Element, ...]
    asked: Asked

    @property
    def spec(self) -> JobSpec:
        """The job of the first cell; what an array asks for is the same in all."""
        return self.elements[0].plan.spec

    @property
    def submission(self) -> int:
        """The number under which its runs are submitted."""
        return self.elements[0].submission


def plan_arrays(elements: Sequence[Element], most: int | None) -> tuple[SweepArray, ...]:
    """The elements in as few arrays as possible, in the order of their first cells. most: elements of an array."""
    groups: dict[Shape, list[tuple[Element, Asked]]] = {}
    for element in elements:
        asked = asked_of_slurm(element.plan)
        groups.setdefault(_shape(element, asked), []).append((element, asked))
    return tuple(
        SweepArray(elements=tuple(element for element, _ in part), asked=_most_asked([asked for _, asked in part]))
        for group in groups.values()
        for part in (group[start : start + (most or len(group))] for start in range(0, len(group), most or len(group)))
    )


def _shape(element: Element, asked: Asked) -> Shape:
    spec = element.plan.spec
    return Shape(
        nodes=spec.nodes,
        gpus_per_node=spec.gpus_per_node,
        device_kind=spec.device.kind,
        cluster=spec.cluster,
        memory_class=memory_class(asked.memory_bytes_per_node),
        submission=element.submission,
    )


def memory_class(num_bytes: int) -> int:
    """GiB up to the next power of two; 0, all of a node, is a class by itself."""
    return 0 if num_bytes == 0 else 1 << (ceil_div(num_bytes, GIB) - 1).bit_length()


def _most_asked(asked: Sequence[Asked]) -> Asked:
    memory = max(asked, key=lambda each: each.memory_bytes_per_node)
    lead = max(asked, key=lambda each: each.lead_s)
    if len(asked) == 1:
        return asked[0]
    cells = plural(len(asked), "cell")
    return replace(
        memory,
        memory_words=f"{memory.memory_words} (the most of {cells})",
        lead_s=lead.lead_s,
        lead_words=f"{lead.lead_words} (the most of {cells})",
    )


def array_script(folder: SweepFolder, number: int, array: SweepArray, python: str) -> str:
    """The text of the n-th array's script."""
    slurm = array.spec.cluster.slurm
    assert slurm is not None, "only jobs for Slurm are an array"
    script = Script(
        spec=array.spec,
        asked=array.asked,
        name=array_name(folder, number),
        folder=str(folder.root),
        python=python,
        script_name=folder.script(number).name,
        array=Array(
            cells_file=str(folder.cells_file(number)),
            num_cells=len(array.elements),
            max_parallel=slurm.max_parallel,
        ),
    )
    return job_script(script)


def array_name(folder: SweepFolder, number: int) -> str:
    """The n-th array's name for the scheduler, without the prefix of all our jobs."""
    return f"{folder.root.name}-{number}"
