"""The user's jobs as squeue tells them: one call for all of them, and a job that is not told of is not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.scheduler.client import Ask, ask

# Tabs between the fields, and the name, which may hold anything, last.
FORMAT = "%i\t%T\t%r\t%N\t%S\t%j"
# All states: an ended job is told of for a while (MinJobAge, 300 s by default). An id that is unknown makes
# `squeue --jobs` fail or be silent, depending on how many were asked for, so none is named.
SQUEUE = ("squeue", "--me", "--noheader", "--states=all", "--array", f"--format={FORMAT}")

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
LIVE = frozenset({"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "SIGNALING", "SUSPENDED", "STOPPED", "RESIZING"})
# Slurm waits for something that does not come by itself.
STUCK = frozenset(
    {
        "AccountNotAllowed", "AssocMaxNodePerJobLimit", "AssocMaxWallDurationPerJobLimit", "BadConstraints",
        "DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "JobHeldAdmin", "JobHeldUser", "PartitionDown",
        "PartitionInactive", "PartitionNodeLimit", "PartitionTimeLimit", "QOSMaxNodePerJobLimit",
        "QOSMaxWallDurationPerJobLimit", "QOSNotAllowed", "ReservationDeleted", "launch failed requeued held",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job, or one element of an array (job_id '17_3'). nodes as Slurm lists them; start as it expects or had it."""

    job_id: str
    name: str
    state: str
    reason: str
    nodes: str
    start: str

    @property
    def is_waiting(self) -> bool:
        """Whether it is queued, for the first time or again."""
        return self.state in WAITING

    @property
    def is_live(self) -> bool:
        """Whether it is running, or on its way in or out."""
        return self.state in LIVE

    @property
    def is_over(self) -> bool:
        """Whether it has ended for good."""
        return not (self.is_waiting or self.is_live)

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for what does not come by itself."""
        return self.is_waiting and self.reason in STUCK


def parse_squeue(text: str) -> tuple[Job, ...]:
    """The jobs in squeue's answer to FORMAT."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("\t", 5)
        if len(fields) == 6:
            job_id, state, reason, nodes, start, name = fields
            jobs.append(Job(job_id=job_id, name=name, state=state, reason=reason, nodes=nodes, start=start))
    return tuple(jobs)


def my_jobs(run: Ask = ask) -> tuple[Job, ...]:
    """Every job of this user that Slurm still knows, the ended ones for a while. Raises SchedulerSilent."""
    return parse_squeue(run(SQUEUE))


def by_id(jobs: Iterable[Job]) -> dict[str, Job]:
    """Jobs by their ids. A requeued job that squeue tells of twice is the one that has not ended."""
    return {job.job_id: job for job in sorted(jobs, key=lambda job: not job.is_over)}


def named(jobs: Iterable[Job], name: str) -> tuple[Job, ...]:
    """Jobs of one name, those that have not ended first, each the oldest first."""
    return tuple(sorted((job for job in jobs if job.name == name), key=lambda job: (job.is_over, _number(job.job_id))))


def _number(job_id: str) -> int:
    return int("".join(character for character in job_id.partition("_")[0] if character.isdecimal()) or 0)


def cancel_argv(job_ids: Sequence[str]) -> tuple[str, ...]:
    """The command that cancels jobs or elements of arrays."""
    return ("scancel", *job_ids)
