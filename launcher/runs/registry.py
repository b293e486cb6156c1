"""The runs in a folder: what they are called, which one is meant, and how each of them stands."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from launcher.errors import InputError, Problem
from launcher.runs.layout import RunFolder
from launcher.runs.markers import last_attempt, read_markers
from launcher.runs.processes import ProcessId, is_alive, processes_of_run
from launcher.runs.records import RunState, Status
from launcher.runs.state import read_state
from launcher.spec import JobSpec

LAST = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run as it stands now. reason is for a person, and empty where there is nothing to say."""

    run_id: str
    run_dir: Path
    status: Status
    attempt: int
    created_at_s: float
    exit_code: int | None
    reason: str


def new_run_id(spec: JobSpec, now: datetime, token: str) -> str:
    """A name that sorts by time and says what runs: 20261122-031502-smollm2-135m-lora-ddp-3f9a."""
    parts = (now.strftime("%Y%m%d-%H%M%S"), spec.model.name, spec.method.kind, spec.shard.kind, token)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def list_runs(runs_dir: Path) -> tuple[RunSummary, ...]:
    """Every run in the folder, the oldest first; what is no run is passed over."""
    return tuple(sorted(map(summarise, _run_folders(runs_dir)), key=lambda run: (run.created_at_s, run.run_id)))


def resolve_run(runs_dir: Path, text: str) -> RunFolder:
    """The run that a user means: its id, the beginning of exactly one id, a path, or 'last'.

    Raises InputError that says what there is.
    """
    if os.sep in text or text in (".", ".."):
        return _at_path(Path(text))
    names = sorted(folder.root.name for folder in _run_folders(runs_dir))
    if text == LAST:
        return _last_run(runs_dir)
    matches = [text] if text in names else [name for name in names if text and name.startswith(text)]
    if len(matches) == 1:
        return RunFolder(runs_dir.absolute() / matches[0])
    if matches:
        raise _no_run(text, f"is the beginning of {len(matches)} runs", f"say more: {', '.join(matches[-5:])}")
    known = f"its latest are {', '.join(names[-3:])}" if names else "it is empty"
    raise _no_run(text, f"names no run in {runs_dir}", f"{known}; 'last' or a path will do as well")


def summarise(run: RunFolder) -> RunSummary:
    """How a run stands. What the ranks wrote counts first, then what the launcher wrote, then who still lives.

    A run is called failed only where that is proven: its launcher and all its ranks are gone, and it was this
    host, and this user, that can tell. Otherwise it is unknown.
    """
    state = read_state(run)
    attempt = last_attempt(run)
    status, reason = _status(run, state, attempt)
    return RunSummary(
        run_id=run.root.name,
        run_dir=run.root,
        status=status,
        attempt=attempt,
        created_at_s=state.created_at_s if state else run.launch.stat().st_mtime,
        exit_code=state.exit_code if state and state.attempt == attempt else None,
        reason=reason,
    )


def frozen_run_dir(run: RunFolder) -> str:
    """The run folder as its launch plan, and so the environment of its processes, spells it."""
    run_dir: str = msgspec.json.decode(run.launch.read_bytes())["run_dir"]
    return run_dir


def _status(run: RunFolder, state: RunState | None, attempt: int) -> tuple[Status, str]:
    if attempt == 0:
        return Status.RENDERED, ""
    markers = read_markers(run, attempt)
    if markers.finished:
        return Status.FINISHED, ""
    if markers.stopped:
        return Status.STOPPED, f"stopped after step {markers.stopped.step} ({markers.stopped.cause})"
    if state is None or state.attempt != attempt:
        return Status.UNKNOWN, f"state.json does not tell of attempt {attempt}"
    if state.status is not Status.RUNNING:
        return state.status, state.reason
    return _status_of_the_living(run, state)


def _status_of_the_living(run: RunFolder, state: RunState) -> tuple[Status, str]:
    """Of a run that was left as running, with no marker: only processes can tell."""
    here = socket.gethostname()
    if state.host != here:
        return Status.UNKNOWN, f"it was started on {state.host}, and only that host can tell"
    if state.launcher_pid is None or state.launcher_start is None:
        return Status.UNKNOWN, "state.json names no launcher"
    if is_alive(ProcessId(pid=state.launcher_pid, start_ticks=state.launcher_start)):
        return Status.RUNNING, ""
    if os.geteuid() not in (0, run.root.stat().st_uid):
        return Status.UNKNOWN, "its launcher is gone, and its ranks are another user's"
    ranks = processes_of_run(frozen_run_dir(run))
    if ranks:
        return Status.UNKNOWN, f"its launcher is gone, but {len(ranks)} of its processes still run"
    return Status.FAILED, "its launcher was killed, and left no result"


def _run_folders(runs_dir: Path) -> list[RunFolder]:
    """Folders with a launch plan; one that is still being written has a dot before its name."""
    if not runs_dir.is_dir():
        return []
    folders = (RunFolder(path) for path in runs_dir.absolute().iterdir() if not path.name.startswith("."))
    return [folder for folder in folders if folder.launch.is_file()]


def _at_path(path: Path) -> RunFolder:
    run = RunFolder(path.absolute())
    if not run.launch.is_file():
        raise _no_run(str(path), "is no run folder", "a run folder holds launch.json")
    return run


def _last_run(runs_dir: Path) -> RunFolder:
    runs = list_runs(runs_dir)
    if not runs:
        raise _no_run(LAST, f"names no run: {runs_dir} has none", "start one with python launch.py")
    return RunFolder(runs[-1].run_dir)


def _no_run(text: str, rule: str, way_out: str) -> InputError:
    return InputError([Problem(field="run", value=text, rule=rule, way_out=way_out)])
