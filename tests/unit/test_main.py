"""The command as a whole process: exit codes, what goes where, and that bad input starts and writes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch.py"


def launch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = (sys.executable, str(LAUNCH), *arguments)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


WRONG = {
    "unknown key": ("train.lerning_rate=3",),
    "unknown key with plus": ("+foo=1",),
    "unknown option": ("model=llama3-9b",),
    "wrong type": ("gpus=eight",),
    "null": ("method=null",),
    "not an override": ("gpus",),
    "secret": ("mode='${oc.env:HOME}'",),
    "sweep without -m": ("method=lora,qlora",),
    "rules": ("method=full", "method.rank=4", "gpus=0", "data=alpaca"),
    "no such card here": ("device=h100-80g",),
    "a sweep's option for one job": ("sweep.drop=true",),
    "no cell at a time": ("-m", "gpus=1,2", "sweep.parallel=0"),
    "one bad cell of four": ("-m", "gpus=1,2", "shard=ddp,zero3"),
    "a word of a group's own": ("shard.name=zero9",),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_ends_with_2_and_leaves_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "HYDRA" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) < 24
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_ends_with_3_and_says_what_would(tmp_path: Path) -> None:
    done = launch(tmp_path, "mode=plan", "model=llama3-8b", "method=full", "shard=ddp", "gpus=8", "device=rtx4090")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "\nWhat would fit  " in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last == "error: the job does not fit rtx4090; nothing was started (fit=warn starts it all the same)"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_fit_warn_lets_it_pass(tmp_path: Path) -> None:
    arguments = ("mode=plan", "model=llama3-8b", "method=full", "shard=ddp", "gpus=8", "device=rtx4090", "fit=warn")
    assert launch(tmp_path, *arguments).returncode == 0


def test_fit_auto_applies_what_keeps_the_training(tmp_path: Path) -> None:
    arguments = ("mode=plan", "model=llama3-8b", "method=lora", "gpus=8", "device=rtx4070-12g", "plan.format=json")
    refused, taken = launch(tmp_path, *arguments), launch(tmp_path, *arguments, "fit=auto")
    assert (refused.returncode, taken.returncode) == (3, 0)
    before, after = json.loads(refused.stdout), json.loads(taken.stdout)
    assert (before["verdict"], after["verdict"]) == ("does not fit", "fits")
    assert (before["spec"]["shard"]["kind"], after["spec"]["shard"]["kind"]) == ("ddp", "fsdp")
    assert after["spec"]["train"]["global_batch"] == before["spec"]["train"]["global_batch"]
    assert after["spec"]["method"] == before["spec"]["method"]


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    done = launch(tmp_path, "mode=plan", "plan.format=json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["spec"]["model"]["name"] == "smollm2-135m"
    assert done.stderr == ""


def test_json_of_a_multirun_is_an_array(tmp_path: Path) -> None:
    done = launch(tmp_path, "-m", "mode=plan", "plan.format=json", "gpus=2,4", "method=full,lora")
    kinds = [(plan["spec"]["gpus_per_node"], plan["spec"]["method"]["kind"]) for plan in json.loads(done.stdout)]
    assert kinds == [(2, "full"), (2, "lora"), (4, "full"), (4, "lora")]
    assert list(tmp_path.iterdir()) == []


def test_render_writes_the_run_folder_and_starts_nothing(tmp_path: Path) -> None:
    done = launch(tmp_path, "mode=render", "shard=zero2", "gpus=2")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert {"job.json", "launch.json", "launch.sha256", "memory_plan.json", "deepspeed.json"} <= {
        path.name for path in run.iterdir()
    }
    assert not (run / "attempts").exists()
    frozen = json.loads((run / "launch.json").read_text())
    assert "-m" in frozen["argv"]
    assert "jobs.train" in frozen["argv"]


def test_render_for_slurm_writes_a_script_and_says_how_it_is_queued(tmp_path: Path) -> None:
    done = launch(tmp_path, "mode=render", "cluster=slurm", "device=cpu", "gpus=2", "nodes=2")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    said = done.stderr.splitlines()
    assert said[said.index("Queue it  1 counts its submissions") + 1] == f"  sbatch --parsable {run}/job.sh 1"
    assert "Asked of Slurm" in said
    assert (run / "job.sh").read_text() == json.loads((run / "launch.json").read_text())["files"]["job.sh"]
    assert not (run / "submission.json").exists()


def test_options_and_overrides_in_any_order(tmp_path: Path) -> None:
    first = launch(tmp_path, "mode=plan", "gpus=2,4", "-m")
    second = launch(tmp_path, "-m", "mode=plan", "gpus=2,4")
    assert (first.returncode, first.stderr) == (second.returncode, second.stderr) == (0, first.stderr)


def test_help_names_the_groups(tmp_path: Path) -> None:
    done = launch(tmp_path, "--help")
    assert done.returncode == 0
    assert "smollm2-135m" in done.stdout
    assert "zero3" in done.stdout
