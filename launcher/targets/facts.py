"""What any host says of itself, and what of it is held against this host and the plan."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import launcher
from launcher.host import Host
from launcher.spec import DeviceSpec
from launcher.units import format_bytes

PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "datasets", "safetensors")
CODE = ("launcher", "jobs")
# The driver's total differs a little between hosts with the same card.
MEMORY_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """missing_paths: of the model and the data, those that are not there. gpu_bytes: of its smallest card."""

    versions: dict[str, str]
    code_hash: str
    missing_paths: tuple[str, ...]
    num_cores: int
    ram_available_bytes: int
    num_gpus: int
    gpu_names: tuple[str, ...]
    gpu_bytes: int | None
    gpu_problem: str | None


def host_facts(host: Host, paths: Iterable[str]) -> HostFacts:
    """What this host says of itself. paths: what must be there."""
    return HostFacts(
        versions=versions(),
        code_hash=code_hash(),
        missing_paths=tuple(path for path in paths if not Path(path).exists()),
        num_cores=host.num_cores,
        ram_available_bytes=host.ram_available_bytes,
        num_gpus=host.num_gpus,
        gpu_names=host.gpu_names,
        gpu_bytes=None if host.gpu is None else host.gpu.memory_bytes,
        gpu_problem=host.gpu_problem,
    )


def versions() -> dict[str, str]:
    """Everything that must be the same on every host: fitlaunch, Python, and the packages that train."""
    found = {"fitlaunch": launcher.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def code_hash() -> str:
    """sha256 over the sources of launcher/ and jobs/: their names and contents."""
    root = Path(launcher.__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(_sources(root)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _sources(root: Path) -> Iterator[Path]:
    for folder in CODE:
        yield from (root / folder).rglob("*.py")


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """'torch 2.12.0 (here 2.13.0), peft missing (here 0.21)'; '' where all is the same."""
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    return ", ".join(f"{name} {there.get(name, 'missing')} (here {here.get(name, 'missing')})" for name in names)


def unfit_gpus(found: HostFacts, device: DeviceSpec, num_gpus: int) -> Iterator[tuple[str, str]]:
    """What is wrong with a host's GPUs, each with the way out. num_gpus: what the job takes there."""
    if found.num_gpus < num_gpus:
        why = f" ({found.gpu_problem})" if found.gpu_problem else ""
        yield (
            f"has {found.num_gpus} GPUs, and the job takes {num_gpus}{why}",
            "nvidia-smi tells more; use fewer gpus, or leave it out",
        )
    planned, there = device.memory_bytes, found.gpu_bytes
    if planned is not None and there is not None and there < planned * (1 - MEMORY_TOLERANCE):
        names = ", ".join(sorted(set(found.gpu_names)))
        yield (
            f"has GPUs of {format_bytes(there)} ({names}), and the plan is for {device.name} with "
            f"{format_bytes(planned)}",
            "plan for the smallest card: device=NAME",
        )
