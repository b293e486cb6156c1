"""Launch plans for several hosts: golden files, held against the parsers of the programs that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import InputError
from launcher.execution import host_facts
from launcher.node.fields import NodeFields, fill
from launcher.render.environment import HostFacts
from launcher.render.types import LaunchPlan
from launcher.spec import HostSlots, JobSpec, MethodKind, Program, ShardKind
from tests.launching import H100, make_launch
from tests.several_hosts import hosts_spec

RUNS = Path("/data/runs")
CASES: dict[str, JobSpec] = {
    "hosts-lora-fsdp-cuda-torchrun": hosts_spec(
        (HostSlots(host="gpu-1", slots=8), HostSlots(host="me@gpu-2", slots=4)),
        gpus=4,
        shard=ShardKind.FSDP,
        device=H100,
        network_interface="ib0",
        environment=("HF_TOKEN",),
    ),
    "hosts-full-zero2-cpu-deepspeed": hosts_spec(
        (HostSlots(host="gpu-1", slots=8), HostSlots(host="me@gpu-2", slots=4)),
        method=MethodKind.FULL,
        shard=ShardKind.ZERO2,
        program=Program.DEEPSPEED,
    ),
}
FIELDS = NodeFields(node_rank=1, head="gpu-1", port=23_456, address="10.0.0.2", rendezvous="a-run-3")


def launch_of(name: str) -> LaunchPlan:
    # The GPUs that were chosen on this host say nothing about the others'.
    return make_launch(RUNS, spec=CASES[name], host=HostFacts(num_cpus=64, visible_devices=("3", "5")))


def describe(launch: LaunchPlan) -> str:
    sections = ["argv", *(f"  {word}" for word in launch.argv), "", "env"]
    sections += [f"  {name}={value}" for name, value in launch.env.items()]
    sections += ["", "hostfile", *(f"  {line}" for line in launch.files["hostfile"].splitlines())]
    sections += ["", "files", *(f"  {name}" for name in launch.files)]
    return "\n".join(sections) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_launch_plan(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"launch/{name}.txt", describe(launch_of(name)))


def test_torchrun_takes_the_command_of_a_node() -> None:
    from torch.distributed.run import config_from_args, parse_args

    launch = launch_of("hosts-lora-fsdp-cuda-torchrun")
    config, program, words = config_from_args(parse_args(list(fill(launch.argv, FIELDS)[3:])))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (2, 2, 4, 0)
    assert (config.rdzv_backend, config.rdzv_endpoint, config.run_id) == ("c10d", "gpu-1:23456", "a-run-3")
    assert (config.rdzv_configs["is_host"], config.rdzv_configs["join_timeout"]) == ("0", "900")
    assert config.local_addr == "10.0.0.2"
    assert config.signals_to_handle == "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    assert (config.shutdown_timeout, words) == (600, ["-u", "-m", "jobs.train", launch.run_dir])
    assert isinstance(program, str)


def test_the_head_is_told_that_it_is_the_host() -> None:
    head = NodeFields(node_rank=0, head="gpu-1", port=23_456, address="10.0.0.1", rendezvous="a-run-3")
    assert "--rdzv-conf=is_host=1,join_timeout=900" in fill(launch_of("hosts-lora-fsdp-cuda-torchrun").argv, head)


def test_deepspeed_takes_the_command_and_the_hostfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.launcher.runner import _parse_hostfile, parse_args

    launch = launch_of("hosts-full-zero2-cpu-deepspeed")
    parsed = parse_args(list(fill(launch.argv, FIELDS)[3:]))
    assert (parsed.hostfile, parsed.launcher, parsed.force_multi) == (f"{launch.run_dir}/hostfile", "pdsh", True)
    assert (parsed.master_addr, parsed.master_port, parsed.no_ssh_check) == ("gpu-1", 23_456, True)
    assert (parsed.module, parsed.no_local_rank, parsed.enable_each_rank_log) == (True, True, "logs")
    assert (parsed.user_script, parsed.user_args) == ("jobs.train", [launch.run_dir])
    pool = _parse_hostfile(launch.files["hostfile"].splitlines(keepends=True))
    assert dict(pool) == {"gpu-1": 2, "me@gpu-2": 2}


@pytest.mark.parametrize("folder", ["/my runs", "/runs/$(reboot)", "/runs/%n", "/runs/a;b"])
def test_a_folder_that_a_shell_could_read_is_refused(folder: str) -> None:
    with pytest.raises(
        InputError, match=r"^runs_dir=.* cannot be said over ssh: use runs_dir=DIR with an absolute path"
    ):
        make_launch(Path(folder), spec=CASES["hosts-full-zero2-cpu-deepspeed"])


def test_a_key_that_does_not_go_to_the_hosts_is_no_key_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not host_facts(hosts_spec()).has_wandb_key
    assert host_facts(hosts_spec(environment=("WANDB_API_KEY",))).has_wandb_key
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password s3cret\n")
    assert host_facts(hosts_spec()).has_wandb_key
