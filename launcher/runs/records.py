"""What is written into a run folder, as frozen types, and the two ways of writing it: atomically, or line by line."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from launcher.runs.processes import read_stat
from launcher.spec import to_json

T = TypeVar("T")


class Status(StrEnum):
    """Where a run is. UNKNOWN is said when nobody can tell, and is never shown as failed."""

    RENDERED = "rendered"
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNKNOWN = "unknown"


GOES_ON = frozenset({Status.QUEUED, Status.RUNNING})
ENDED = frozenset({Status.FINISHED, Status.FAILED, Status.STOPPED, Status.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """state.json, written by the launcher. launcher_pid and launcher_start tell whether it still lives, on `host`.

    launcher_start: the process's start time in clock ticks since boot (/proc/PID/stat field 22).
    """

    run_id: str
    status: Status
    attempt: int
    created_at_s: float
    updated_at_s: float
    launcher_pid: int | None = None
    launcher_start: int | None = None
    host: str = ""
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A line of events.jsonl. stage is a short name such as 'load model'; detail is for people.

    node: which of the attempt's nodes it happened on, on this host; None and '' where it is of the run as a whole.
    """

    time_s: float
    source: str
    attempt: int
    stage: str
    detail: str = ""
    node: int | None = None
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMetrics:
    """A line of metrics.jsonl: one optimizer step. loss is the mean over the step's sequences of all ranks."""

    kind: str = "train"
    time_s: float
    attempt: int
    step: int
    num_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    samples_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalMetrics:
    """A line of metrics.jsonl: one evaluation over the held-out rows. step 0 is before training."""

    kind: str = "eval"
    time_s: float
    attempt: int
    step: int
    loss: float
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """started.json: what the ranks checked about themselves before the first step."""

    attempt: int
    time_s: float
    world_size: int
    device: str
    wrapper: str
    resumed_from_step: int | None
    num_parameters: int
    num_trainable_parameters: int
    num_train_samples: int
    num_eval_samples: int
    num_truncated_samples: int
    versions: dict[str, str]
    checks: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """finished.json: the run did all its steps and its result is on disk, complete."""

    attempt: int
    time_s: float
    num_steps: int
    train_loss: float
    eval_loss_before: float | None
    eval_loss_after: float | None
    samples_per_s: float
    tokens_per_s: float
    train_time_s: float
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """stopped.json: all ranks agreed to stop after `step`; `checkpoint` is complete (None: nothing was saved)."""

    attempt: int
    time_s: float
    step: int
    cause: str
    checkpoint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """failed-rank-<r>.json: what a rank died of, written by itself.

    phase: the launcher.planner.types.Phase value it was in, at `step`; empty before the first.
    """

    attempt: int
    time_s: float
    rank: int
    host: str
    error_type: str
    message: str
    traceback: str
    phase: str = ""
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """submission.json: how the run was last handed to a scheduler. number counts submissions of this run from 1.

    job_id is None while sbatch has not answered: then the scheduler is asked for job_name before anything is sent
    again. array_task: the run's element where the job is an array. sweep: the sweep that it belongs to.
    """

    number: int
    cluster: str
    job_name: str
    time_s: float
    job_id: str | None = None
    array_task: int | None = None
    sweep: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStart:
    """attempts/<k>/attempt.json, by the head node: what this start is to the scheduler, and where its nodes meet."""

    attempt: int
    time_s: float
    head: str
    port: int
    num_nodes: int
    submission: int | None = None
    job_id: str | None = None
    restart_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankDeath:
    """A rank seen to have ended. exit_code as subprocess has it (negative: the signal); None where nobody saw it."""

    rank: int
    seen_at_s: float
    exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """An entry of node-<n>/ranks.json: a rank that runs on the node. Its logs are found by local_rank."""

    rank: int
    local_rank: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnd:
    """node-<n>/end.json, by the node agent, last: how the ranks of one node ended.

    ended_by: why the agent ended them by force, empty where they ended by themselves. oom_kills: processes that the
    kernel killed for want of memory in the agent's cgroup meanwhile, None where it cannot be read. is_lost: a launcher
    wrote this in the agent's place, for it no longer reaches the host.
    """

    attempt: int
    node_rank: int
    host: str
    started_at_s: float
    ended_at_s: float
    exit_code: int | None
    deaths: tuple[RankDeath, ...]
    ended_by: str = ""
    oom_kills: int | None = None
    is_lost: bool = False

    @property
    def is_unstarted(self) -> bool:
        """Whether the node could not even start its ranks; ended_by says why."""
        return self.exit_code is None and self.started_at_s == self.ended_at_s and not self.is_lost


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMeasurement:
    """measured-rank-<r>.json. On CUDA the torch.cuda statistics; on CPU allocated_bytes is the CPU allocator's
    peak over the first steps and reserved_bytes is None. All are peaks, in bytes.

    by_phase: launcher.planner.types.Phase values; the first step of an attempt is a phase of its own.
    num_tokens_measured_step: tokens this rank was given in the step that needed the most, padding not counted; None on
        CUDA, where the peaks are over all steps.
    """

    rank: int
    host: str
    device: str
    allocated_bytes: int
    reserved_bytes: int | None
    process_bytes: int | None
    rss_bytes: int
    by_phase: dict[str, int]
    num_tokens_measured_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json of a checkpoint or result: written last, so a folder without a valid one is incomplete."""

    run_id: str
    attempt: int
    step: int
    world_size: int
    shard: str
    method: str
    plan_hash: str
    files: tuple[ManifestFile, ...]
    job_id: str | None = None


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; survives power loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary_beside(path)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_exclusively(path: Path, text: str) -> bool:
    """Write a file that nobody has written yet, whole or not at all; False where somebody has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary_beside(path)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.link(temporary, path)  # unlike a rename, it never replaces
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    return True


def _temporary_beside(path: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{socket.gethostname()}.{os.getpid()}.")


def discard_half_written(folder: Path) -> None:
    """Remove what processes of this host were about to write anywhere in a folder when they were killed."""
    temporary = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)\.[^.]+")
    for path in folder.rglob(".*"):
        found = temporary.fullmatch(path.name)
        stat = read_stat(int(found[1])) if found else None
        if found and (stat is None or stat.is_zombie):
            path.unlink(missing_ok=True)


def write_record(path: Path, record: Any) -> None:
    """Write one of these types as JSON, atomically."""
    write_atomically(path, to_json(record) + "\n")


def append_record(path: Path, record: Any) -> None:
    """Append one of these types as one JSON line, in a single write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = msgspec.json.encode(record) + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read_record(path: Path, kind: type[T]) -> T | None:
    """Read a record; None where there is no file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
