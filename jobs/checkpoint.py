"""Which checkpoint counts: one whose manifest, written last, still describes the files beside it.

A manifest names every file with its size and sha256, and the run, step, world size, sharding and method that wrote it.
A folder without one was being written when the job died; a folder that differs from it was damaged later. Neither is
ever resumed from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.precision import is_deepspeed
from launcher.runs.checkpoints import difference_to
from launcher.runs.layout import RunFolder
from launcher.runs.records import Manifest, ManifestFile, read_record, write_record
from launcher.spec import JobSpec

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"


class CheckpointBroken(RuntimeError):
    """The folder is not the checkpoint its manifest describes, or has no manifest."""


class ResumeRefused(RuntimeError):
    """The checkpoint is complete, but this job must not be resumed from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The newest complete checkpoint, or None; and why newer ones were passed over."""

    folder: Path | None
    manifest: Manifest | None
    passed_over: tuple[str, ...]


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(folder.name.removeprefix(PREFIX))


def checkpoint_folders(run: RunFolder) -> list[Path]:
    """All checkpoint folders, the newest step first, complete or not."""
    if not run.checkpoints.is_dir():
        return []
    named = [path for path in run.checkpoints.iterdir() if path.is_dir() and path.name.startswith(PREFIX)]
    return sorted((path for path in named if path.name.removeprefix(PREFIX).isdecimal()), key=step_of, reverse=True)


def write_manifest(
    folder: Path, *, run_id: str, attempt: int, step: int, plan_hash: str, spec: JobSpec, job_id: str | None = None
) -> Manifest:
    """Describe what lies in `folder` and write the description there; every file is on the disk before it is."""
    manifest = Manifest(
        run_id=run_id,
        attempt=attempt,
        step=step,
        world_size=spec.world_size,
        shard=spec.shard.kind.value,
        method=spec.method.kind.value,
        plan_hash=plan_hash,
        job_id=job_id,
        files=tuple(_describe(folder, path) for path in _files(folder)),
    )
    write_record(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; CheckpointBroken where there is none that can be read."""
    try:
        manifest = read_record(folder / MANIFEST, Manifest)
    except msgspec.DecodeError as error:
        raise CheckpointBroken(f"{folder / MANIFEST} cannot be read: {error}") from error
    if manifest is None:
        raise CheckpointBroken(f"{folder} has no {MANIFEST}: its writing was interrupted")
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest, once every file it names is there with its size and sha256, and no other file is."""
    manifest = read_manifest(folder)
    named = {file.path: file for file in manifest.files}
    present = {str(path.relative_to(folder)) for path in _files(folder)}
    if missing := sorted(named.keys() - present):
        raise CheckpointBroken(f"{folder} lacks {', '.join(missing)}")
    if foreign := sorted(present - named.keys()):
        raise CheckpointBroken(f"{folder} holds files that are not its own: {', '.join(foreign)}")
    for name, file in named.items():
        size_bytes = (folder / name).stat().st_size
        if size_bytes != file.size_bytes:
            raise CheckpointBroken(f"{folder / name} has {size_bytes} bytes, not {file.size_bytes}")
    for name, file in named.items():
        if _sha256(folder / name) != file.sha256:
            raise CheckpointBroken(f"{folder / name} is damaged: its sha256 is not the manifest's")
    return manifest


def find_newest(run: RunFolder) -> Found:
    """The complete checkpoint with the highest step."""
    passed_over: list[str] = []
    for folder in checkpoint_folders(run):
        try:
            return Found(folder=folder, manifest=verify(folder), passed_over=tuple(passed_over))
        except CheckpointBroken as error:
            passed_over.append(str(error))
    return Found(folder=None, manifest=None, passed_over=tuple(passed_over))


def require_resumable(folder: Path, manifest: Manifest, *, run_id: str, spec: JobSpec, user: int) -> None:
    """Refuse a checkpoint that this job cannot continue, or that this user must not load.

    The optimizer states are split by world size and sharding, so neither may change. DeepSpeed loads its checkpoints
    with weights_only=False, which runs code from the file: only files that the user owns are given to it.
    """
    difference = difference_to(manifest, run_id=run_id, spec=spec)
    if difference is not None:
        raise ResumeRefused(f"{folder} {difference}")
    if is_deepspeed(spec.shard.kind):
        foreign = [path for path in (folder, *_files(folder)) if path.stat().st_uid != user]
        if foreign:
            raise ResumeRefused(f"{foreign[0]} belongs to another user, and DeepSpeed would run code from it")


def rotate(run: RunFolder, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints that have a manifest; called once the newest is complete."""
    complete = [folder for folder in checkpoint_folders(run) if (folder / MANIFEST).is_file()]
    for folder in complete[keep:]:
        discard(folder)


def discard(folder: Path) -> None:
    """Delete a checkpoint, its manifest first, so that half of it never counts."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    """Every file but the manifest, in a fixed order. Links are refused: they lead out of what is verified."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointBroken(f"{path} is a link")
        if path.is_file() and path.name != MANIFEST:
            yield path


def _describe(folder: Path, path: Path) -> ManifestFile:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return ManifestFile(path=str(path.relative_to(folder)), size_bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
