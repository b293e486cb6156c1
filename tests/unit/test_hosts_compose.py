"""cluster=hosts: what the hostfile decides, and what it does not allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.spec import HostSlots
from tests.composed import host, problems_of, spec_of

CPU = ("device=cpu", "train.global_batch=48")
EVEN = "node1 slots=4\nnode2 slots=4\nme@node3 slots=4\n"
UNEVEN = "node1 slots=8\nnode2 slots=2\n"


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    return tmp_path / "hosts"


def on_hosts(hostfile: Path, text: str, *overrides: str) -> tuple[str, ...]:
    hostfile.write_text(text)
    return ("cluster=hosts", f"cluster.hostfile={hostfile}", *CPU, *overrides)


def test_nodes_and_ranks_come_from_the_hostfile(hostfile: Path) -> None:
    spec = spec_of(*on_hosts(hostfile, EVEN))
    assert (spec.nodes, spec.gpus_per_node, spec.world_size) == (3, 4, 12)
    assert spec.cluster.hosts is not None
    assert spec.cluster.hosts.hostfile == str(hostfile)
    assert spec.cluster.hosts.hosts == (
        HostSlots(host="node1", slots=4),
        HostSlots(host="node2", slots=4),
        HostSlots(host="me@node3", slots=4),
    )


def test_fewer_nodes_take_the_first_hosts_and_fewer_gpus_a_part_of_each(hostfile: Path) -> None:
    spec = spec_of(*on_hosts(hostfile, UNEVEN, "nodes=1", "gpus=6"))
    assert (spec.nodes, spec.gpus_per_node) == (1, 6)
    assert spec.cluster.hosts is not None
    assert spec.cluster.hosts.hosts == (HostSlots(host="node1", slots=8),)


def test_the_memory_of_a_cpu_rank_is_a_hosts_share_by_slots(hostfile: Path) -> None:
    spec = spec_of(*on_hosts(hostfile, EVEN), on=host(ram_bytes=40))
    assert spec.device.memory_bytes == 10


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (EVEN, "nodes=4", "nodes=4 is more than the 3 hosts of {file}: use nodes=3, or add hosts"),
        (EVEN, "gpus=5", "gpus=5 is more than the 4 slots of node1: use gpus=4, or leave node1 out"),
        (UNEVEN, "gpus=6", "gpus=6 is more than the 2 slots of node2: use gpus=2, or leave node2 out"),
        (
            UNEVEN,
            "gpus=auto",
            "gpus=auto cannot be one number for every host: node1 has 8 slots, node2 has 2: use gpus=2",
        ),
        (
            "localhost slots=1\nnode2 slots=1\n",
            "mode=run",
            "cluster.hostfile={file} begins with localhost, which is another host for each of the others: "
            "name the host as the others reach it",
        ),
        (
            EVEN,
            "data=alpaca data.path=/my$rows",
            "data.path=/my$rows cannot be said over ssh: give an absolute path of letters, digits and _.,@+=~/- "
            "(no space: sbatch and ssh misread it)",
        ),
        (
            EVEN,
            "shard=zero2 launcher=deepspeed cluster.environment=[NCCL_DEBUG,HF_TOKEN]",
            "cluster.environment=HF_TOKEN looks like a secret, and DeepSpeed's launcher would show it on every "
            "host's command line: use launcher=torchrun",
        ),
        (EVEN, "cluster.partition=gpu", "cluster.partition=gpu has no effect with cluster=hosts: leave it out"),
    ],
)
def test_what_is_refused(hostfile: Path, text: str, overrides: str, expected: str) -> None:
    assert expected.format(file=hostfile) in problems_of(*on_hosts(hostfile, text, *overrides.split()))


def test_everything_wrong_with_a_hostfile_comes_at_once(hostfile: Path) -> None:
    text = "-oProxyCommand=reboot slots=2\nnode1 slots=0\nnode1 slots=2junk\n"
    form = "write HOST slots=N or USER@HOST slots=N"
    assert problems_of(*on_hosts(hostfile, text)) == [
        f"cluster.hostfile={hostfile} line 1: -oProxyCommand=reboot would be an option of ssh: "
        "ports and options belong into ~/.ssh/config",
        f"cluster.hostfile={hostfile} line 2: slots=0 is not in 1..1024: leave out what is not used",
        f"cluster.hostfile={hostfile} line 3: slots=2junk is not slots=N: {form}",
    ]


def test_a_run_needs_a_hostfile_and_a_plan_does_not() -> None:
    way_out = "use cluster.hostfile=FILE (see hostfile.example), or mode=plan"
    assert problems_of("cluster=hosts", *CPU) == [f"cluster.hostfile=null is required with cluster=hosts: {way_out}"]
    planned = spec_of("cluster=hosts", *CPU, "mode=plan", "nodes=3", "gpus=8")
    assert (planned.nodes, planned.gpus_per_node) == (3, 8)


def test_a_hostfile_has_no_effect_elsewhere(hostfile: Path) -> None:
    hostfile.write_text(EVEN)
    assert problems_of(f"cluster.hostfile={hostfile}") == [
        f"cluster.hostfile={hostfile} has no effect with cluster=local: leave it out"
    ]
