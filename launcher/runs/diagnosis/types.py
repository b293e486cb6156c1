"""What a diagnosis is made from, and what it says. Frozen values; times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from launcher.runs.records import Failed, NodeEnd


class Kind(StrEnum):
    """What a failure was. The first group is told by a rank, the second by how it ended, the third from outside."""

    EXCEPTION = "exception"
    CUDA_OUT_OF_MEMORY = "CUDA out of memory"
    HOST_OUT_OF_MEMORY = "host out of memory"
    SHARED_MEMORY_FULL = "shared memory full"
    DISK_FULL = "disk full"
    FILE_MISSING = "file missing"
    HUB_UNREACHABLE = "model hub unreachable"
    IMPORT_ERROR = "import error"
    GPU_FAULT = "GPU fault"
    PORT_TAKEN = "port taken"
    START_REFUSED = "start refused"
    COLLECTIVE_TIMEOUT = "collective timed out"
    CONNECTION_LOST = "connection lost"

    KERNEL_OUT_OF_MEMORY = "killed by the kernel, out of memory"
    SIGNAL = "killed by a signal"
    EXIT = "exit code"
    ORPHANED = "launcher gone"

    RENDEZVOUS = "rendezvous"
    NODE_LOST = "node lost"
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    SCHEDULER = "scheduler"
    UNKNOWN = "unknown"


VICTIMS = frozenset({Kind.COLLECTIVE_TIMEOUT, Kind.CONNECTION_LOST, Kind.ORPHANED})
"""What happens to a rank because something happened to another."""

MEMORY = frozenset({Kind.CUDA_OUT_OF_MEMORY, Kind.HOST_OUT_OF_MEMORY, Kind.KERNEL_OUT_OF_MEMORY})


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerWord:
    """How the scheduler says that a job ended: its state and reason in its own words. nodes: those it had."""

    job_id: str
    state: str
    reason: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is left of an attempt.

    hosts: the nodes by number, '' where the name is not known. present: nodes whose agent was ever there.
    agent_texts: the end of what the program that starts the ranks said, by node; job_text: of what the scheduler kept
    of the job's own output. rank_tails: the last lines of each
    rank's log. planned_bytes: of the fullest rank's whole process; planned_phase_bytes: its tensors by phase.
    otherwise: what to say where nothing else tells anything.
    """

    attempt: int
    world_size: int
    hosts: tuple[str, ...] = ("",)
    present: frozenset[int] = frozenset({0})
    failures: tuple[Failed, ...] = ()
    ends: tuple[NodeEnd, ...] = ()
    word: SchedulerWord | None = None
    agent_texts: Mapping[int, str] = field(default_factory=dict)
    job_text: str = ""
    rank_tails: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    planned_bytes: int | None = None
    planned_phase_bytes: Mapping[str, int] = field(default_factory=dict)
    otherwise: str = ""

    @property
    def num_nodes(self) -> int:
        """Nodes that the attempt was to have."""
        return len(self.hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failure, of a rank, of a node, or of the whole attempt (neither is named).

    is_killed: by a signal, so that it left no note, and its death was noticed by others. step, phase: where it was,
    as it said itself.
    """

    kind: Kind
    time_s: float | None = None
    rank: int | None = None
    node: int | None = None
    host: str = ""
    error_type: str = ""
    message: str = ""
    exit_code: int | None = None
    is_killed: bool = False
    step: int | None = None
    phase: str = ""

    @property
    def is_victim(self) -> bool:
        """Whether it follows from another's failure."""
        return self.kind in VICTIMS


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """An out-of-memory error in numbers, planned beside measured; None where neither the message nor the plan tells.

    tried_bytes: what was asked for. in_use_bytes: of the whole process then. allocated_bytes: tensors among it.
    """

    tried_bytes: int | None = None
    in_use_bytes: int | None = None
    allocated_bytes: int | None = None
    capacity_bytes: int | None = None
    planned_bytes: int | None = None
    planned_phase_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A change of the job that takes less memory. saved_bytes: planned, for each rank."""

    words: tuple[str, ...]
    saved_bytes: int
    time_ratio: float
    changes_training: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """diagnosis.json: the first cause of a failed attempt, for a person.

    what: one sentence. because: why it is held to be the first cause, a line each. victims: ranks that failed after
    it. log_tail: the last lines of that rank's log, or of the program that starts ranks. advice: what to do.
    overrides: for want of memory, in the order in which people try them.
    """

    attempt: int
    kind: Kind
    what: str
    rank: int | None = None
    node: int | None = None
    host: str = ""
    time_s: float | None = None
    step: int | None = None
    phase: str = ""
    because: tuple[str, ...] = ()
    victims: tuple[int, ...] = ()
    memory: MemoryUse | None = None
    scheduler: SchedulerWord | None = None
    log_tail: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
