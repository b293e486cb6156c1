"""Keys that a job on a cluster will not find: they are in this environment, which stays here, and not in the home."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.render.environment import read_host_facts
from launcher.spec import JobSpec, TrackerKind

HF_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def keys_left_behind(spec: JobSpec, environ: Mapping[str, str], job_environ: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for every service that the job will have to do without, though the user's shell has its key.

    environ: the user's. job_environ: what the job takes of it.
    """
    return (*_wandb(spec, environ, job_environ), *_hub(spec, environ, job_environ))


def _wandb(spec: JobSpec, environ: Mapping[str, str], job_environ: Mapping[str, str]) -> Iterator[str]:
    if spec.tracker.kind is not TrackerKind.WANDB or read_host_facts(job_environ).has_wandb_key:
        return
    key = "WANDB_API_KEY stays here, for Slurm would store it" if environ.get("WANDB_API_KEY") else "there is no key"
    yield f"Weights & Biases will be offline: {key}; `wandb login` once lets jobs find one in your home"


def _hub(spec: JobSpec, environ: Mapping[str, str], job_environ: Mapping[str, str]) -> Iterator[str]:
    if spec.model.source != "hub" or not spec.model.gated or _token_file(job_environ).is_file():
        return
    name = next((name for name in HF_VARIABLES if environ.get(name)), None)
    if name is not None:
        yield (
            f"{spec.model.hub_id} is gated, and {name} stays here, for Slurm would store it: "
            "`hf auth login` once lets jobs find it in your home"
        )


def _token_file(environ: Mapping[str, str]) -> Path:
    """Where `hf auth login` leaves its token (huggingface_hub constants.py: HF_TOKEN_PATH)."""
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '/')}/.cache"
    return Path(environ.get("HF_HOME") or f"{cache}/huggingface") / "token"
