"""Job scripts as golden files, and what in them comes from the plan; nothing that a shell could misread gets in."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import allowed
from launcher.devices import listed_devices
from launcher.errors import InputError
from launcher.planner.plan import make_plan
from launcher.planner.types import MemoryPlan
from launcher.render.asked import LEAST_LEAD_S, asked_of_slurm, lead_seconds, planned_memory_bytes
from launcher.render.render import render
from launcher.render.sbatch import Array, Script, job_script, memory_option, sbatch_options
from launcher.units import GIB, MIB
from tests.composed import spec_of

RUN_ID = "20261122-031502-smollm2-135m-lora-ddp-3f9a"
PYTHON = "/venv/bin/python"
CASES: dict[str, tuple[str, ...]] = {
    "cpu": ("device=cpu", "gpus=2", "nodes=2"),
    "site": (
        "device=h100-80g",
        "gpus=8",
        "nodes=4",
        "model=llama3.1-8b",
        "method=full",
        "shard=zero3",
        "train.global_batch=64",
        "cluster.partition=gpu",
        "cluster.account=lab-7",
        "cluster.qos=normal",
        "cluster.reservation=maint_1",
        "cluster.constraint='h100&ib'",
        "cluster.nodelist=['node[1-8]']",
        "cluster.exclude=[node3,'node[5-6]']",
        "cluster.gpu_type=h100",
        "cluster.cpus_per_node=96",
        "cluster.time='2-00:00:00'",
        "cluster.setup=['module load cuda/13.0','export NCCL_DEBUG=WARN']",
        "cluster.network_interface=ib0",
    ),
    "container": (
        "device=h100-80g",
        "gpus=8",
        "cluster.gpu_request=gres",
        "cluster.mem=0",
        "cluster.lead_s=300",
        "cluster.requeue=false",
        "cluster.container='docker://nvcr.io#nvidia/pytorch:26.01-py3'",
        "cluster.container_mounts=['/data:/data:ro',/scratch]",
    ),
}


@functools.cache
def plan_of(*overrides: str) -> MemoryPlan:
    return make_plan(spec_of("cluster=slurm", *overrides), listed_devices(), propose=False)


def settled(plan: MemoryPlan) -> MemoryPlan:
    """The plan with figures that stay when the planner learns: a golden script is about the script."""
    return dataclasses.replace(
        plan, host_ram_bytes_per_node=20 * GIB, process_bytes=4 * GIB, process_high_bytes=5 * GIB,
        checkpoint_bytes=30 * GIB,
    )  # fmt: skip


def script_of(plan: MemoryPlan, *, folder: str = f"/data/runs/{RUN_ID}", array: Array | None = None) -> Script:
    return Script(spec=plan.spec, asked=asked_of_slurm(plan), name=RUN_ID, folder=folder, python=PYTHON, array=array)


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_as_it_was(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"sbatch/{name}.sh", job_script(script_of(settled(plan_of(*CASES[name])))))


def test_the_script_of_a_sweep_is_as_it_was(golden: Callable[[str, str], None]) -> None:
    array = Array(cells_file="/data/runs/sweeps/s/cells-0.txt", num_cells=64, max_parallel=8)
    script = dataclasses.replace(
        script_of(settled(plan_of("device=cpu", "gpus=2")), folder="/data/runs/sweeps/s", array=array),
        script_name="array-0.sh",
    )
    golden("sbatch/array.sh", job_script(script))


@pytest.mark.parametrize("name", CASES)
def test_bash_reads_every_script(name: str) -> None:
    text = job_script(script_of(plan_of(*CASES[name])))
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_launch_plan_holds_the_script_and_the_command_that_queues_it() -> None:
    plan = plan_of("device=cpu", "gpus=2", "nodes=2")
    launch = render(plan.spec, plan, run_id=RUN_ID, runs_dir=Path("/data/runs"), python=PYTHON, master_port=20_000)
    assert launch.files["job.sh"] == job_script(script_of(plan))
    assert launch.submit == ("sbatch", "--parsable", f"/data/runs/{RUN_ID}/job.sh")
    assert "--rdzv-id={rendezvous}" in launch.argv


def test_gpus_are_asked_for_as_the_site_wants_them() -> None:
    def gpu_options(*overrides: str) -> list[str]:
        options = sbatch_options(script_of(plan_of("device=h100-80g", "gpus=8", *overrides)))
        return [option for option in options if "gpu" in option or "gres" in option]

    assert gpu_options() == ["--gpus-per-node=8"]
    assert gpu_options("cluster.gpu_type=h100") == ["--gpus-per-node=h100:8"]
    assert gpu_options("cluster.gpu_request=gres", "cluster.gpu_type=h100") == ["--gres=gpu:h100:8"]
    assert gpu_options("cluster.gpu_request=none") == []
    assert [o for o in sbatch_options(script_of(plan_of("device=cpu", "gpus=2"))) if "gpu" in o] == []


# --- what the plan decides


@pytest.mark.parametrize(
    ("step_s", "checkpoint_bytes", "limit_s", "expected"),
    [
        (0.1, 0, 86_400, LEAST_LEAD_S),
        (10.0, 10_000_000_000, 86_400, 200),  # 60 + 3 x 10 + 2 x 50 = 190 s, to the next ten
        (1.0, 480_000_000_000, 86_400, 4870),  # 60 + 3 + 2 x 2400
        (1.0, 10**14, 10**7, 65_535),  # all that --signal takes
        (10.0, 10_000_000_000, 120, 60),  # half of a short job is for training
    ],
)
def test_the_lead_is_for_slurm_a_few_steps_and_saving_twice_over(
    step_s: float, checkpoint_bytes: int, limit_s: int, expected: int
) -> None:
    assert lead_seconds(step_s=step_s, checkpoint_bytes=checkpoint_bytes, time_limit_s=limit_s) == expected


@given(st.floats(0, 1e4), st.integers(0, 10**13), st.integers(60, 10**6))
def test_the_lead_grows_with_what_is_saved_and_leaves_half_of_the_time(step_s: float, size: int, limit_s: int) -> None:
    lead = lead_seconds(step_s=step_s, checkpoint_bytes=size, time_limit_s=limit_s)
    assert lead <= limit_s // 2
    assert lead <= lead_seconds(step_s=step_s, checkpoint_bytes=size + 10**9, time_limit_s=limit_s)
    assert lead <= lead_seconds(step_s=step_s + 1, checkpoint_bytes=size, time_limit_s=limit_s)


def test_a_larger_model_gets_a_longer_lead() -> None:
    small = asked_of_slurm(plan_of("device=h100-80g", "gpus=8"))
    large = asked_of_slurm(
        plan_of("device=h100-80g", "gpus=8", "nodes=2", "model=llama3.1-8b", "method=full", "shard=zero3")
    )
    assert small.lead_s == LEAST_LEAD_S
    assert large.lead_s > 1000  # 112 GB of checkpoint


def test_memory_is_what_is_planned_with_room_or_as_asked() -> None:
    plan = plan_of("device=h100-80g", "gpus=8")
    auto = asked_of_slurm(plan).memory_bytes_per_node
    assert auto % GIB == 0
    assert 1.25 * plan.host_ram_bytes_per_node + 2 * GIB <= auto < 1.25 * plan.host_ram_bytes_per_node + 3 * GIB + 2
    assert asked_of_slurm(plan_of("device=cpu", "gpus=2", "cluster.mem=9G")).memory_bytes_per_node == 9 * GIB


def test_cpu_ranks_live_in_the_memory_that_is_asked_for() -> None:
    plan = plan_of("device=cpu", "gpus=2", "nodes=2")
    assert planned_memory_bytes(plan) > 2 * plan.process_high_bytes * 1.25 + 2 * GIB


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0"), (1, "1M"), (1536 * MIB, "1536M"), (64 * GIB, "64G"), (64 * GIB + 1, "65537M")]
)
def test_memory_in_slurms_units(num_bytes: int, text: str) -> None:
    assert memory_option(num_bytes) == text


# --- what may stand in a script

ODD = [
    "a b", "a'b", 'a"b', "a;b", "$(id)", "`id`", "a\nb", "a\\b", "a#b", "a%j", "a|b", "a&b", "a>b", "a*", "", "é",
    "a\tb", "a\x00b", "a\x1bb", "a!b",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_a_folder_with_odd_characters_is_refused(odd: str) -> None:
    folder = f"/data/{odd}/run" if odd else "data/run"
    with pytest.raises(InputError, match=r"^runs_dir=.* cannot stand in a job script"):
        job_script(script_of(plan_of("device=cpu", "gpus=2"), folder=folder))


SHELL_FREE = (
    allowed.NAME, allowed.NAMES, allowed.NODES, allowed.INTERFACES, allowed.VARIABLE, allowed.JOB_NAME, allowed.PATH,
    allowed.MOUNT,
)  # fmt: skip


@pytest.mark.parametrize("form", SHELL_FREE, ids=lambda form: form.words[:20])
@given(text=st.text(max_size=30))
def test_what_is_allowed_is_harmless(form: allowed.Form, text: str) -> None:
    if form.matches(text):
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set(" '\"\\$`;&|<>()*?!#%{}^")
        assert not text.startswith("-")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("WANDB_API_KEY", True),
        ("HF_TOKEN", True),
        ("HUGGING_FACE_HUB_TOKEN", True),
        ("MY_PASSWORD", True),
        ("DBPASSWORD", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("GITHUB_PAT", True),
        ("NCCL_DEBUG", False),
        ("PATH", False),
        ("PWD", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("MONKEY", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert allowed.looks_secret(name) is secret


def test_secrets_that_a_line_of_shell_sets() -> None:
    assert allowed.secrets_set_by("export WANDB_API_KEY=abc; FOO=1 HF_TOKEN=$x") == ("WANDB_API_KEY", "HF_TOKEN")
    assert allowed.secrets_set_by("unset HF_TOKEN; module load cuda") == ()
