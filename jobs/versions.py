"""The installed versions of everything that decides how a job trains."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "datasets", "safetensors")


def installed_versions() -> dict[str, str]:
    """Name to version, Python among them; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
