"""The checkpoints of a run as the launcher sees them: by their manifests, without reading the files they describe."""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.runs.layout import RunFolder
from launcher.runs.records import Manifest, read_record
from launcher.spec import JobSpec


def newest_checkpoint(run: RunFolder) -> Manifest | None:
    """The manifest of the newest checkpoint that was completed. The ranks verify its files before they take it."""
    manifests = (_manifest(path) for path in run.checkpoints.glob("checkpoint-*/manifest.json"))
    return max((found for found in manifests if found is not None), key=lambda found: found.step, default=None)


def difference_to(manifest: Manifest, *, run_id: str, spec: JobSpec) -> str | None:
    """Why a job cannot go on from a checkpoint, None where it can: the states of the optimizer are split by world size
    and sharding, and no library puts them together again for others."""
    expected = {
        "run": (manifest.run_id, run_id),
        "world size": (manifest.world_size, spec.world_size),
        "sharding": (manifest.shard, spec.shard.kind.value),
        "method": (manifest.method, spec.method.kind.value),
    }
    for what, (saved, wanted) in expected.items():
        if saved != wanted:
            return f"was saved with {what} {saved}, and this job has {what} {wanted}"
    return None


def _manifest(path: Path) -> Manifest | None:
    try:
        return read_record(path, Manifest)
    except msgspec.DecodeError:
        return None
