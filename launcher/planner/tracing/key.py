"""What decides a trace: one digest of the job as far as it matters, the packages, and the code that traces."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from launcher.spec import JobSpec

ROOT = Path(__file__).resolve().parents[3]
# The job and the tracer; what they share with the launcher; what a summary is made by.
CODE = (
    "jobs",
    "launcher/planner/tracing",
    "launcher/planner/allocator",
    "launcher/render/zero_config.py",
    "launcher/precision.py",
    "launcher/shards.py",
    "launcher/spec.py",
    "launcher/units.py",
)
PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "liger-kernel", "safetensors")
# Of a job's training: what decides how long it takes and what it learns, not what it holds.
NO_MATTER = (
    "epochs",
    "eval_every_steps",
    "global_batch",
    "keep_checkpoints",
    "learning_rate",
    "log_every_steps",
    "max_steps",
    "save_every_steps",
    "schedule",
    "seed",
    "warmup_ratio",
    "dataloader_workers",
)


def trace_key(spec: JobSpec, rank: int) -> str:
    """The name under which the trace of a rank is kept: another one as soon as anything that decides it changes."""
    train = {name: value for name, value in msgspec.to_builtins(spec.train).items() if name not in NO_MATTER}
    decides = {
        "model": spec.model.config,
        "method": spec.method,
        "shard": spec.shard,
        "train": train,
        "accumulates": spec.gradient_accumulation > 1,
        "device": dataclasses.replace(spec.device, source=""),
        "ranks": (spec.gpus_per_node, spec.nodes, rank),
        "packages": package_versions(),
        "code": code_digest(),
    }
    return hashlib.sha256(msgspec.json.encode(decides, order="deterministic")).hexdigest()


def package_versions() -> dict[str, str]:
    """The installed versions of what the job is made of; torch's says for which CUDA it was built."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """The digest of every file of the job and of the tracer."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for name in CODE:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]
