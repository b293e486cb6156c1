"""Trackers: files where they belong, nothing on other ranks, nothing secret in what wandb keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jobs.tracker import NoTracker, open_tracker
from launcher.spec import JobSpec, TrackerKind, TrackerSpec
from tests.launching import make_spec


def spec_of(kind: TrackerKind) -> JobSpec:
    return dataclasses.replace(make_spec(), tracker=TrackerSpec(kind=kind, project="tests"))


@pytest.mark.parametrize("kind", TrackerKind)
def test_only_the_first_rank_tracks(tmp_path: Path, kind: TrackerKind) -> None:
    tracker = open_tracker(spec_of(kind), tmp_path, run_id="run", is_first_rank=False)
    assert isinstance(tracker, NoTracker)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_can_read_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker(spec_of(TrackerKind.TENSORBOARD), tmp_path, run_id="run", is_first_rank=True)
    tracker.log({"train/loss": 2.5}, step=1)
    tracker.log({"train/loss": 1.5}, step=2)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]


def test_wandb_without_a_key_stays_offline_and_keeps_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["train.py", "token=hf_secret"])
    tracker = open_tracker(spec_of(TrackerKind.WANDB), tmp_path, run_id="run", is_first_rank=True)
    tracker.log({"train/loss": 2.5}, step=1)
    tracker.close()
    kept = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert any(path.name == "run-run.wandb" for path in kept)
    assert not [path for path in kept if b"hf_secret" in path.read_bytes()]
