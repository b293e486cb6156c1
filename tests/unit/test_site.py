"""A site's limits against a job: everything at once, each with the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launcher.scheduler.details import parse_partitions
from launcher.spec import JobSpec
from launcher.targets.shared import doubtful_paths
from launcher.targets.site import most_cells, partition_problems, with_meaning
from tests.composed import spec_of

TOLD = parse_partitions((Path(__file__).parents[1] / "fixtures/slurm-22.05/partitions.txt").read_text())
PLAIN = spec_of("cluster=slurm", "device=cpu", "gpus=2", "cluster.time=30")


def job(*, nodes: int = 1, **slurm: object) -> JobSpec:
    assert PLAIN.cluster.slurm is not None
    changed = dataclasses.replace(PLAIN.cluster.slurm, **slurm)  # type: ignore[arg-type]
    return dataclasses.replace(PLAIN, nodes=nodes, cluster=dataclasses.replace(PLAIN.cluster, slurm=changed))


def problems(spec: JobSpec) -> list[str]:
    assert spec.cluster.slurm is not None
    return [str(problem) for problem in partition_problems(spec, spec.cluster.slurm, TOLD)]


@pytest.mark.parametrize(
    "spec",
    [
        job(),
        job(nodes=2),
        job(partition="high", time_min=60),
        job(partition="single,main", nodes=2),
        job(partition="main", account="whoever", qos="whatever"),
    ],
)
def test_what_the_site_allows(spec: JobSpec) -> None:
    assert problems(spec) == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            job(partition="gpu,main"),
            ["cluster.partition=gpu is no partition of this cluster: it has high, limited, main, short, single"],
        ),
        (job(nodes=3), ["nodes=3 is more than the 2 that a job can have in main: use 2 or less"]),
        (job(partition="single", nodes=2), ["nodes=2 is more than the 1 that a job can have in single: use 1 or less"]),
        (
            job(time_min=61),
            [
                "cluster.time is 61 min, more than the 60 of main: the job would wait for ever: "
                "use cluster.time=60 or less: a run that is cut off goes on from its checkpoint"
            ],
        ),
        (
            job(partition="limited", nodes=2, time_min=5000, account="lab3", qos="short"),
            [
                "nodes=2 is more than the 1 that a job can have in limited: use 1 or less",
                "cluster.time is 5000 min, more than the 3630 of limited: the job would wait for ever: "
                "use cluster.time=3630 or less: a run that is cut off goes on from its checkpoint",
                "cluster.account=lab3 may not use limited: use another partition",
                "cluster.qos=short is not allowed in limited: use another partition",
                "cluster.partition=limited takes or starts no jobs now (limited is DRAIN): use another, or wait",
            ],
        ),
    ],
)
def test_what_it_does_not(spec: JobSpec, expected: list[str]) -> None:
    assert problems(spec) == expected


def test_a_cluster_without_a_default_partition() -> None:
    slurm = PLAIN.cluster.slurm
    assert slurm is not None
    told = [(partition, False) for partition, _ in TOLD]
    (problem,) = partition_problems(PLAIN, slurm, told)
    assert str(problem) == (
        "cluster.partition=null has to be given: this cluster has no default: use high, limited, main, short, single"
    )


@pytest.mark.parametrize(
    ("of_site", "told", "most"), [(None, 1001, 1001), (10, 1001, 10), (2000, 1001, 1001), (None, None, None)]
)
def test_arrays(of_site: int | None, told: int | None, most: int | None) -> None:
    slurm = job(max_array_size=of_site).cluster.slurm
    assert slurm is not None
    assert most_cells(slurm, told) == most


def test_slurms_words_get_a_meaning_where_we_have_one() -> None:
    said = "allocation failure: Invalid feature specification"
    assert with_meaning(said) == f"{said}: no node has the features of cluster.constraint"
    assert with_meaning("something new") == "something new"


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /ram tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/scratch\\040disk tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("runs_dir", "expected"),
    [
        ("/home/ada/runs", ()),
        ("/data/runs", ()),
        (
            "/tmp/runs",
            ("runs_dir=/tmp/runs is hardly on every node: it is below /tmp, which each host has of its own",),
        ),
        ("/ram/runs", ("runs_dir=/ram/runs is hardly on every node: it is on a tmpfs of this host",)),
        (
            "/home/scratch disk/r",
            ("runs_dir=/home/scratch disk/r is hardly on every node: it is on a tmpfs of this host",),
        ),
    ],
)
def test_paths_that_other_hosts_hardly_share(runs_dir: str, expected: tuple[str, ...]) -> None:
    assert doubtful_paths(PLAIN, Path(runs_dir), MOUNTS) == expected
