"""Commands that are suggested find their run, or their sweep, from the folder where they are read."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launcher.cli import run_cli
from launcher.runs.called import run_argument, run_command, sweep_command
from launcher.runs.layout import RunFolder
from launcher.runs.records import write_record
from launcher.runs.sweeps import Sweep, SweepFolder, sweep_folder
from launcher.spec import ClusterKind
from launcher.targets.folder import write_run_folder
from tests.launching import make_launch

PLACES = ("runs", "my runs")


@pytest.fixture(params=PLACES)
def runs_dir(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / request.param


def test_a_run_is_called_by_its_id_only_where_that_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "runs" / "a"
    monkeypatch.chdir(tmp_path)
    assert (run_argument(run_dir), run_command("logs -f", run_dir)) == ("a", "fitlaunch logs -f a")
    assert run_argument(Path("runs/a")) == "a"
    assert run_argument(tmp_path / "a") == str(tmp_path / "a")
    monkeypatch.chdir("/")
    assert run_argument(run_dir) == str(run_dir)


def test_a_run_is_found(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: RunFolder = write_run_folder(make_launch(runs_dir), now_s=1_000_000_000.0)
    _, *words = shlex.split(run_command("status", run.root))
    assert run_cli(words) == 0
    assert run.root.name in capsys.readouterr().err


def test_a_sweep_is_found(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder: SweepFolder = sweep_folder(runs_dir, "20261122-031502-sweep-3f9a")
    folder.root.mkdir(parents=True)
    write_record(folder.record, Sweep(sweep_id=folder.root.name, created_at_s=1.0, cluster=ClusterKind.LOCAL, cells=()))
    _, *words = shlex.split(sweep_command("status", folder.root))
    assert run_cli(words) == 0
    assert folder.root.name in capsys.readouterr().err
