"""What a rank refuses to start with: a changed plan, a foreign environment, a launcher that is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.start import Launcher, StartRefused, read_start, verify_environment, verify_plan
from jobs.watch import is_alive
from launcher.render.environment import HostFacts, environment
from launcher.spec import MethodKind, ShardKind
from tests.launching import make_spec
from tests.ranks import write_run

ENV = {
    "FITLAUNCH_ATTEMPT": "2",
    "FITLAUNCH_PLAN_HASH": "abc",
    "FITLAUNCH_LAUNCHER": "77:1234",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
}


def test_reads_its_start() -> None:
    start = read_start(ENV)
    assert (start.attempt, start.rank, start.world_size, start.is_first_rank) == (2, 1, 2, False)
    assert start.launcher == Launcher(pid=77, start_ticks=1234)


@pytest.mark.parametrize("missing", sorted(ENV.keys() - {"FITLAUNCH_LAUNCHER"}))
def test_names_the_variable_that_is_missing(missing: str) -> None:
    with pytest.raises(StartRefused, match=f"{missing} is not set"):
        read_start({name: value for name, value in ENV.items() if name != missing})


def test_takes_the_plan_that_was_launched_and_no_other(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_spec())
    announced = run.launch_hash.read_text().strip()
    verify_plan(run, announced)
    with pytest.raises(StartRefused, match="its hash is not"):
        verify_plan(run, "0" * 64)
    job = run.job.read_text()
    run.job.write_text(job + " ")
    with pytest.raises(StartRefused, match=r"job\.json is not what the launch plan says"):
        verify_plan(run, announced)
    run.job.unlink()
    with pytest.raises(StartRefused, match=r"job\.json belongs to the launch plan and is missing"):
        verify_plan(run, announced)
    run.job.write_text(job)
    run.launch.write_text(run.launch.read_text().replace("job.json", "other.json"))
    with pytest.raises(StartRefused, match=r"launch\.json is not the plan that was launched"):
        verify_plan(run, announced)


@pytest.mark.parametrize("shard", ShardKind)
@pytest.mark.parametrize("method", MethodKind)
def test_takes_the_environment_that_the_launcher_makes(method: MethodKind, shard: ShardKind) -> None:
    spec = make_spec(method=method, shard=shard)
    env = environment(spec, run_dir="/runs/run", host=HostFacts())
    verify_environment(spec, env, num_cuda_devices=2 if spec.device.kind == "cuda" else 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_CPU", "true"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_MIXED_PRECISION", "fp16"),
    ],
)
def test_refuses_what_a_shell_may_carry(name: str, value: str) -> None:
    spec = make_spec(shard=ShardKind.DDP)
    with pytest.raises(StartRefused, match=f"{name}='{value}'"):
        verify_environment(spec, {name: value}, num_cuda_devices=2 if spec.device.kind == "cuda" else 0)


def test_a_launcher_is_its_pid_and_its_start_time() -> None:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[19])
    assert is_alive(Launcher(pid=os.getpid(), start_ticks=ticks))
    assert not is_alive(Launcher(pid=os.getpid(), start_ticks=ticks + 1))
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert not is_alive(Launcher(pid=child, start_ticks=ticks))
