"""Keys that stay where the job is queued from: which of them it will miss, and how it could have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.render.environment import environment, read_host_facts
from launcher.scheduler.environment import job_environment
from launcher.spec import JobSpec, TrackerKind
from launcher.targets.credentials import keys_left_behind
from tests.launching import make_spec

WANDB = make_spec(tracker=TrackerKind.WANDB)


def gated() -> JobSpec:
    spec = make_spec()
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, gated=True))


def said(spec: JobSpec, environ: dict[str, str]) -> tuple[str, ...]:
    return keys_left_behind(spec, environ, job_environment(environ, ()))


def test_a_key_in_the_environment_stays_there_and_the_job_is_offline(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "WANDB_API_KEY": "0" * 40}
    assert said(WANDB, environ) == (
        "Weights & Biases will be offline: WANDB_API_KEY stays here, for Slurm would store it; "
        "`wandb login` once lets jobs find one in your home",
    )
    facts = read_host_facts(job_environment(environ, ()))
    assert environment(WANDB, run_dir="/runs/x", host=facts)["WANDB_MODE"] == "offline"


def test_a_key_in_the_home_is_found(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    environ = {"HOME": str(tmp_path)}
    assert said(WANDB, environ) == ()
    facts = read_host_facts(job_environment(environ, ()))
    assert "WANDB_MODE" not in environment(WANDB, run_dir="/runs/x", host=facts)


def test_no_key_at_all(tmp_path: Path) -> None:
    (text,) = said(WANDB, {"HOME": str(tmp_path)})
    assert text.startswith("Weights & Biases will be offline: there is no key; ")


def test_a_gated_model_needs_a_token_that_jobs_find(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "HF_TOKEN": "hf_x"}
    assert said(gated(), environ) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct is gated, and HF_TOKEN stays here, for Slurm would store it: "
        "`hf auth login` once lets jobs find it in your home",
    )
    assert said(make_spec(), environ) == ()
    token = tmp_path / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_x")
    assert said(gated(), environ) == ()
    assert said(gated(), {**environ, "HF_HOME": str(tmp_path / "elsewhere")}) != ()
