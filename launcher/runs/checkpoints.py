"""The checkpoints of a run as the launcher sees them: by their manifests, without reading the files they describe."""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.runs.layout import RunFolder
from launcher.runs.records import Manifest, read_record


def newest_checkpoint(run: RunFolder) -> Manifest | None:
    """The manifest of the newest checkpoint that was completed. The ranks verify its files before they take it."""
    manifests = (_manifest(path) for path in run.checkpoints.glob("checkpoint-*/manifest.json"))
    return max((found for found in manifests if found is not None), key=lambda found: found.step, default=None)


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_record(path, Manifest)
    except msgspec.DecodeError:
        return None
