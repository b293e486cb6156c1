"""What may be asked of a cluster: every value has a form, no secret is stored, and the site's limits hold."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.compose import make_spec
from launcher.errors import InputError
from launcher.spec import GpuRequest, SlurmSpec
from tests.composed import compose_conf, host, problems_of, spec_of

SLURM = ("cluster=slurm", "device=h100-80g", "gpus=8")
A100 = host("a100-80g")


def with_cluster(**values: Any) -> list[str]:
    """The problems of a job whose cluster profile has these values, whatever Hydra's grammar makes of them."""
    conf = compose_conf(*SLURM)
    conf["cluster"] = {**conf["cluster"], **values}
    try:
        make_spec(conf, host())
    except InputError as error:
        return [str(problem) for problem in error.problems]
    return []


def slurm_of(*overrides: str) -> SlurmSpec:
    slurm = spec_of(*SLURM, *overrides).cluster.slurm
    assert slurm is not None
    return slurm


def test_a_profile_with_everything_is_accepted() -> None:
    values = {
        "partition": "gpu,gpu-long",
        "account": "lab_7.a@x",
        "qos": "normal",
        "reservation": "maint-1",
        "constraint": "[rack1|rack2]&h100*2",
        "nodelist": ["node[001-004,7]", "gpu-a.b"],
        "exclude": ["node3"],
        "gpu_type": "h100",
        "container": "/images/train+1.sqsh",
        "container_mounts": ["/data:/data:ro", "/scratch"],
        "network_interface": "ib0,ib1",
        "environment": ["NCCL_DEBUG", "MY_FLAG"],
        "setup": ["module load cuda/13.0 && export X='a b'", "source /opt/env.sh"],
    }
    assert with_cluster(**values) == []


INJECTIONS = [
    "main\n#SBATCH --uid=0",
    "main --wrap=id",
    "main;id",
    "$(id)",
    "`id`",
    "main'",
    'main"',
    "main\\",
    "-main",
    "main #",
    "",
    "main\x00",
    "mäin",
]


@pytest.mark.parametrize("value", INJECTIONS)
@pytest.mark.parametrize(
    "field",
    ["partition", "account", "qos", "reservation", "constraint", "gpu_type", "container", "network_interface"],
)
def test_what_is_more_than_a_name_is_refused(field: str, value: str) -> None:
    (found,) = with_cluster(**{field: value})
    assert found.startswith(f"cluster.{field}={value!r} is not allowed: give ")


@pytest.mark.parametrize("value", INJECTIONS)
@pytest.mark.parametrize("field", ["nodelist", "exclude", "container_mounts", "environment"])
def test_so_is_each_entry_of_a_list(field: str, value: str) -> None:
    good = "/data" if field == "container_mounts" else "good"
    (found,) = with_cluster(**{field: [good, value]})
    assert found.startswith(f"cluster.{field}={value!r} is not allowed: give ")


def test_a_line_of_the_site_is_one_line() -> None:
    (found,) = with_cluster(setup=["true", "true\nid"])
    assert found.startswith("cluster.setup='true\\nid' is not allowed: give one line of shell")


def test_a_secret_is_stored_nowhere() -> None:
    way_out = "leave it out, and log in once where the nodes share your home: wandb login, hf auth login"
    assert with_cluster(environment=["HF_TOKEN", "FOO"], setup=["export WANDB_API_KEY=abc; true"]) == [
        f"cluster.environment=HF_TOKEN would be stored by Slurm with its value: {way_out}",
        f"cluster.setup=WANDB_API_KEY=... would stand in the script, which Slurm stores: {way_out}",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            "launcher=deepspeed shard=zero2",
            "launcher=deepspeed starts ranks by ssh, where Slurm neither limits nor ends them: "
            "use launcher=torchrun: it hosts the DeepSpeed engine as well",
        ),
        (
            "nodes=2 cluster.max_nodes=1",
            "nodes=2 is more than the 1 that slurm allows (cluster.max_nodes): use 1 or less",
        ),
        (
            "cluster.time=90 cluster.max_time='1:00:00'",
            "cluster.time is 90 min, more than the 60 that slurm allows: "
            "use 60 or less: a run that is cut off goes on from its checkpoint",
        ),
        (
            "cluster.time=2 cluster.lead_s=120",
            "cluster.lead_s=120 leaves no time to train: the job has 120 s in all: use less, or auto",
        ),
        (
            "cluster.time='7-00:00:00' cluster.lead_s=70000",
            "cluster.lead_s=70000 is more than Slurm's --signal takes: use 65535 or less",
        ),
        (
            "cluster.gpu_request=none cluster.gpu_type=h100",
            "cluster.gpu_type=h100 has no effect with cluster.gpu_request=none: leave it out",
        ),
    ],
)
def test_what_a_site_does_not_allow(overrides: str, expected: str) -> None:
    assert problems_of(*SLURM, *overrides.split()) == [expected]


def test_nothing_is_guessed_about_nodes_that_cannot_be_seen() -> None:
    device = "device=auto cannot be looked at from here on a Slurm cluster: name it: device=h100-80g, or device=cpu"
    gpus = "gpus=auto cannot be counted from here on a Slurm cluster: say how many a node has: gpus=8"
    assert sorted(problems_of("cluster=slurm", on=A100)) == [device, gpus]
    assert problems_of("cluster=slurm", "gpus=8", "mode=render", on=A100) == [device]
    assert problems_of("cluster=slurm", "gpus=8", "mode=plan", on=A100) == []


def test_a_plan_takes_no_card_of_this_host_for_one_of_the_nodes() -> None:
    assert spec_of("cluster=slurm", "gpus=8", "mode=plan", on=A100).device.memory_bytes is None


def test_cpu_ranks_share_the_memory_that_is_asked_for() -> None:
    spec = spec_of("cluster=slurm", "gpus=4", "device=cpu", "cluster.mem=8G")
    assert spec.device.memory_bytes == 2 * 1024**3
    assert spec.device.source == "cluster.mem, shared by 4 ranks"


def test_times_and_sizes_in_slurms_own_forms() -> None:
    slurm = slurm_of("cluster.time='1-02:30:00'", "cluster.mem=64G", "cluster.gpu_request=gres")
    assert (slurm.time_min, slurm.memory_bytes_per_node, slurm.gpu_request) == (1590, 64 * 1024**3, GpuRequest.GRES)
    assert slurm_of().memory_bytes_per_node is None
    assert slurm_of("cluster.mem=0").memory_bytes_per_node == 0
