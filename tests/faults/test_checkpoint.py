"""Checkpoints that are cut off, damaged, or not this job's: none of them is ever resumed from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.checkpoint import (
    MANIFEST,
    CheckpointBroken,
    ResumeRefused,
    checkpoint_folders,
    find_newest,
    require_resumable,
    rotate,
    verify,
    write_manifest,
)
from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec, MethodKind, ShardKind
from tests.launching import make_spec

HASH = "0" * 64


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def save(run: RunFolder, step: int, spec: JobSpec | None = None) -> Path:
    """A complete checkpoint of three files, one of them in a folder of its own."""
    folder = run.checkpoints / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * step)
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (folder / "global_step" / "states.pt").write_bytes(b"states")
    complete(run, folder, step, spec)
    return folder


def complete(run: RunFolder, folder: Path, step: int, spec: JobSpec | None = None) -> None:
    write_manifest(
        folder, run_id=run.root.name, attempt=1, step=step, plan_hash=HASH, spec=make_spec() if spec is None else spec
    )


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(bytes(damaged))


def lose_a_file(folder: Path) -> None:
    (folder / "global_step" / "states.pt").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def cut_off_the_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[:-40])


def empty_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"")


def slip_a_file_in(folder: Path) -> None:
    (folder / "extra.pt").write_bytes(b"code")


def replace_by_a_link(folder: Path) -> None:
    path = folder / "model.safetensors"
    elsewhere = path.rename(folder.parent / "elsewhere")
    path.symlink_to(elsewhere)


FAULTS = {
    cut_off: "has 767 bytes, not 768",
    flip_a_bit: "model.safetensors is damaged: its sha256 is not the manifest's",
    lose_a_file: "lacks global_step/states.pt",
    lose_the_manifest: "has no manifest.json: its writing was interrupted",
    cut_off_the_manifest: "manifest.json cannot be read",
    empty_the_manifest: "manifest.json cannot be read",
    slip_a_file_in: "holds files that are not its own: extra.pt",
    replace_by_a_link: "model.safetensors is a link",
}


def test_a_complete_checkpoint_is_verified(run: RunFolder) -> None:
    manifest = verify(save(run, 3))
    assert (manifest.step, manifest.world_size, manifest.shard) == (3, 2, "ddp")
    assert [(file.path, file.size_bytes) for file in manifest.files] == [
        ("global_step/states.pt", 6),
        ("model.safetensors", 768),
        ("trainer_state.json", 18),
    ]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_broken_checkpoint_is_passed_over_for_an_older_one(run: RunFolder, fault: Callable[[Path], None]) -> None:
    older, newest = save(run, 2), save(run, 3)
    fault(newest)
    with pytest.raises(CheckpointBroken, match=FAULTS[fault]):
        verify(newest)
    found = find_newest(run)
    assert found.folder == older
    assert len(found.passed_over) == 1
    assert FAULTS[fault] in found.passed_over[0]


def test_with_none_complete_there_is_none(run: RunFolder) -> None:
    assert find_newest(run).folder is None
    lose_the_manifest(save(run, 1))
    assert find_newest(run).folder is None


def test_steps_are_compared_as_numbers(run: RunFolder) -> None:
    save(run, 9)
    assert find_newest(run).folder == run.checkpoints / "checkpoint-9"
    save(run, 10)
    (run.checkpoints / "checkpoint-tmp").mkdir()
    assert find_newest(run).folder == run.checkpoints / "checkpoint-10"


def test_rotation_keeps_the_newest_complete_ones(run: RunFolder) -> None:
    for step in (1, 2, 3):
        save(run, step)
    interrupted = save(run, 4)
    lose_the_manifest(interrupted)
    rotate(run, keep=2)
    assert [folder.name for folder in checkpoint_folders(run)] == ["checkpoint-4", "checkpoint-3", "checkpoint-2"]
    complete(run, interrupted, 4)
    rotate(run, keep=2)
    assert [folder.name for folder in checkpoint_folders(run)] == ["checkpoint-4", "checkpoint-3"]


CHANGES = {
    "world size 2, and this job has world size 4": {"gpus_per_node": 4},
    "method lora, and this job has method full": {"method": MethodKind.FULL},
    "sharding ddp, and this job has sharding fsdp": {"shard": ShardKind.FSDP},
}


@pytest.mark.parametrize("refusal", CHANGES)
def test_another_job_is_refused_by_what_differs(run: RunFolder, refusal: str) -> None:
    folder, spec = save(run, 3), make_spec()
    changed = spec
    for field, value in CHANGES[refusal].items():
        current = getattr(spec, field)
        new = value if isinstance(value, int) else dataclasses.replace(current, kind=value)
        changed = dataclasses.replace(changed, **{field: new})
    with pytest.raises(ResumeRefused, match=refusal):
        require_resumable(folder, verify(folder), run_id="run", spec=changed, user=os.getuid())


def test_another_run_is_refused(run: RunFolder) -> None:
    folder = save(run, 3)
    with pytest.raises(ResumeRefused, match="was saved with run run, and this job has run other"):
        require_resumable(folder, verify(folder), run_id="other", spec=make_spec(), user=os.getuid())


def test_deepspeed_loads_only_what_the_user_owns(run: RunFolder) -> None:
    """DeepSpeed unpickles: another user's file would run another user's code."""
    spec = make_spec()
    engine = dataclasses.replace(spec, shard=dataclasses.replace(spec.shard, kind=ShardKind.ZERO2))
    folder = save(run, 3, engine)
    require_resumable(folder, verify(folder), run_id="run", spec=engine, user=os.getuid())
    with pytest.raises(ResumeRefused, match="belongs to another user"):
        require_resumable(folder, verify(folder), run_id="run", spec=engine, user=os.getuid() + 1)
