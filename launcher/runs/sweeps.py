"""A sweep's folder: which cells it has, which runs they are, and which arrays they were handed to Slurm in.

runs/sweeps/<id>/
  sweep.json          the Sweep, rewritten when a batch of cells joins it
  array-<n>.json      the n-th array, from 1: written before it is submitted, again when Slurm has answered
  array-<n>.sh        its script
  cells-<n>.txt       its run folders, one a line; element 0 is the first
  search.yaml         what a sweeper that searches found, in its own words
  control/cancelled   exists: the user cancelled the sweep; none of its cells starts until they are retried

The cells are ordinary runs, whose folders lie beside `sweeps`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launcher.errors import InputError, Problem
from launcher.runs.layout import RunFolder
from launcher.runs.records import read_record
from launcher.runs.registry import LAST
from launcher.spec import ClusterKind

FOLDER = "sweeps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One job of a sweep. number counts from 0. verdict: the plan's; dropped: it cannot fit, and is never started."""

    number: int
    overrides: tuple[str, ...]
    run_id: str
    verdict: str
    dropped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """sweep.json."""

    sweep_id: str
    created_at_s: float
    cluster: ClusterKind
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySubmission:
    """array-<n>.json. cells: their numbers, in the order of the array's elements; submission: the runs' number for it.

    job_id is None while sbatch has not answered: then Slurm is asked for job_name before anything is sent again.
    """

    number: int
    cells: tuple[int, ...]
    submission: int
    job_name: str
    time_s: float
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """Names of the files in one sweep's folder."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "sweep.json"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def cancelled(self) -> Path:
        return self.root / "control" / "cancelled"

    @property
    def search(self) -> Path:
        return self.root / "search.yaml"

    def array(self, number: int) -> Path:
        return self.root / f"array-{number}.json"

    def script(self, number: int) -> Path:
        return self.root / f"array-{number}.sh"

    def cells_file(self, number: int) -> Path:
        return self.root / f"cells-{number}.txt"

    def run(self, cell: Cell) -> RunFolder:
        return RunFolder(self.root.parent.parent / cell.run_id)


def new_sweep_id(now: datetime, token: str) -> str:
    """A name that sorts by time: 20261122-031502-sweep-3f9a."""
    return f"{now:%Y%m%d-%H%M%S}-sweep-{token}"


def sweep_folder(runs_dir: Path, sweep_id: str) -> SweepFolder:
    """Where a sweep lies."""
    return SweepFolder(runs_dir.absolute() / FOLDER / sweep_id)


def read_sweep(folder: SweepFolder) -> Sweep:
    """The sweep of a folder that was resolved."""
    sweep = read_record(folder.record, Sweep)
    assert sweep is not None, f"{folder.root} is no sweep"
    return sweep


def read_arrays(folder: SweepFolder) -> tuple[ArraySubmission, ...]:
    """Every array that was submitted, or was about to be, in their order."""
    numbers = sorted(
        int(found[1]) for path in folder.root.iterdir() if (found := re.fullmatch(r"array-(\d+)\.json", path.name))
    )
    arrays = (read_record(folder.array(number), ArraySubmission) for number in numbers)
    return tuple(array for array in arrays if array is not None)


def list_sweeps(runs_dir: Path) -> tuple[SweepFolder, ...]:
    """Every sweep in the folder of runs, the oldest first."""
    root = runs_dir.absolute() / FOLDER
    if not root.is_dir():
        return ()
    folders = (SweepFolder(path) for path in sorted(root.iterdir()) if not path.name.startswith("."))
    return tuple(folder for folder in folders if folder.record.is_file())


def resolve_sweep(runs_dir: Path, text: str) -> SweepFolder:
    """The sweep that a user means: its id, the beginning of exactly one, or 'last'. Raises InputError."""
    folders = {folder.root.name: folder for folder in list_sweeps(runs_dir)}
    names = list(folders)
    matches = names[-1:] if text == LAST else [name for name in names if text and name.startswith(text)]
    if text in folders or len(matches) == 1:
        return folders[text if text in folders else matches[0]]
    if matches:
        raise _no_sweep(text, f"is the beginning of {len(matches)} sweeps", f"say more: {', '.join(matches[-5:])}")
    known = f"its latest are {', '.join(names[-3:])}" if names else "it has none; launch.py -m starts one"
    raise _no_sweep(text, f"names no sweep in {runs_dir}", known)


def _no_sweep(text: str, rule: str, way_out: str) -> InputError:
    return InputError([Problem(field="sweep", value=text, rule=rule, way_out=way_out)])
