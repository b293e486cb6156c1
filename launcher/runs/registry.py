"""The runs in a folder: what they are called, which one is meant, and how each of them stands."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from launcher.errors import InputError, Problem
from launcher.runs.attempts import attempt_numbers, last_attempt
from launcher.runs.layout import RunFolder
from launcher.runs.markers import Markers, read_markers, read_node_ends
from launcher.runs.processes import ProcessId, is_alive, processes_of_run
from launcher.runs.records import AttemptStart, RunState, Status, Submission, read_record
from launcher.runs.state import read_state
from launcher.runs.status import Queue, Queued, queued_status
from launcher.scheduler.jobs import Job
from launcher.spec import JobSpec, read_job

LAST = "last"
NO_MARKERS = Markers(started=None, finished=None, stopped=None, failures=(), measurements=())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run as it stands now. reason is for a person, and empty where there is nothing to say.

    job_id: of its newest submission, where a scheduler starts it and has said so.
    """

    run_id: str
    run_dir: Path
    status: Status
    attempt: int
    created_at_s: float
    exit_code: int | None
    reason: str
    job_id: str | None = None


def new_run_id(spec: JobSpec, now: datetime, token: str) -> str:
    """A name that sorts by time and says what runs: 20261122-031502-smollm2-135m-lora-ddp-3f9a."""
    parts = (now.strftime("%Y%m%d-%H%M%S"), spec.model.name, spec.method.kind, spec.shard.kind, token)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def list_runs(runs_dir: Path, queue: Queue | None = None) -> tuple[RunSummary, ...]:
    """Every run in the folder, the oldest first; what is no run is passed over."""
    runs = (summarise(run, queue) for run in _run_folders(runs_dir))
    return tuple(sorted(runs, key=lambda run: (run.created_at_s, run.run_id)))


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


def summarise(run: RunFolder, queue: Queue | None = None) -> RunSummary:
    """How a run stands. What the ranks wrote counts first, then what the launcher wrote, then who still lives.

    A run is called failed only where that is proven: its launcher and all its ranks are gone, and it was this
    host, and this user, that can tell. Otherwise it is unknown. queue: the scheduler, which is asked only where a
    submitted run has not finished; without one it counts as silent.
    """
    state = read_state(run)
    attempt = last_attempt(run)
    submission = read_submission(run)
    if submission is None:
        status, reason = _status(run, state, attempt)
    else:
        status, reason = queued_status(_queued(run, submission, state, attempt, queue))
    return RunSummary(
        run_id=run.root.name,
        run_dir=run.root,
        status=status,
        attempt=attempt,
        created_at_s=state.created_at_s if state else run.launch.stat().st_mtime,
        exit_code=state.exit_code if state and state.attempt == attempt and status is state.status else None,
        reason=reason,
        job_id=None if submission is None else submission.job_id,
    )


def read_submission(run: RunFolder) -> Submission | None:
    """How the run was last handed to a scheduler; None where it never was."""
    return read_record(run.submission, Submission)


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


def _queued(
    run: RunFolder, submission: Submission, state: RunState | None, attempt: int, queue: Queue | None
) -> Queued:
    """What is left of a submitted run, with the scheduler's word where that can matter."""
    markers = read_markers(run, attempt) if attempt else NO_MARKERS
    is_done = markers.finished is not None
    jobs = None if is_done or queue is None else queue.jobs()
    return Queued(
        submission=submission,
        attempt=attempt,
        num_nodes=read_job(run.job).nodes,
        markers=markers,
        state=state,
        start=read_record(run.attempt_start(attempt), AttemptStart) if attempt else None,
        ends=read_node_ends(run, attempt),
        may_go_on=run.requeue(attempt).exists(),
        refused=_refused(run, attempt),
        is_cancelled=run.cancelled.exists(),
        job=None if jobs is None else find_job(jobs, submission),
        is_silent=jobs is None,
    )


def find_job(jobs: Mapping[str, Job], submission: Submission) -> Job | None:
    """The job of a submission: by its id, and by its name where sbatch never told the id."""
    if submission.job_id is not None:
        return jobs.get(submission.job_id)
    element = "" if submission.array_task is None else f"_{submission.array_task}"
    by_name = [job for job in jobs.values() if job.name == submission.job_name and job.job_id.endswith(element)]
    return min(by_name, key=lambda job: job.is_over, default=None)


def _refused(run: RunFolder, attempt: int) -> str:
    """Why a start after the newest attempt came to nothing."""
    later = [number for number in attempt_numbers(run) if number > attempt]
    if not later:
        return ""
    try:
        return run.refused(later[-1]).read_text().partition("\n")[0]
    except FileNotFoundError:
        return ""


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
    silent = _silent_hosts(run, state.attempt)
    if silent:
        return Status.UNKNOWN, f"its launcher is gone; fitlaunch cancel asks what is left on {', '.join(silent)}"
    return Status.FAILED, "its launcher was killed, and left no result"


def _silent_hosts(run: RunFolder, attempt: int) -> tuple[str, ...]:
    """Of a run on several hosts, those that have not said how their ranks ended; nobody else can tell."""
    hosts = read_job(run.job).cluster.hosts
    if hosts is None:
        return ()
    return tuple(each.host for node, each in enumerate(hosts.hosts) if not run.node_end(attempt, node).exists())


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
