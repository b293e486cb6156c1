"""Cancel a run wherever it runs, and prove that nothing of it is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher.errors import SubmitError
from launcher.node.waiting import wait_until
from launcher.operate.queue import SlurmQueue
from launcher.planner.types import MemoryPlan
from launcher.render.asked import asked_of_slurm
from launcher.runs.attempts import last_attempt
from launcher.runs.layout import RunFolder
from launcher.runs.markers import has_result, read_node_ends
from launcher.runs.processes import processes_of_run
from launcher.runs.records import AttemptStart, Status, read_record, write_exclusively
from launcher.runs.registry import RunSummary, find_job, frozen_run_dir, read_submission, summarise
from launcher.runs.stopping import CANCEL, ask_to_stop
from launcher.scheduler.client import Ask, SchedulerRefused, SchedulerSilent, ask
from launcher.scheduler.jobs import Job, cancel_argv
from launcher.spec import ClusterKind, read_job
from launcher.targets.cancel import cancel as cancel_here
from launcher.targets.cancel import not_running, settled
from launcher.targets.hosts import cancel_hosts
from launcher.targets.left import unproven
from launcher.targets.local import STOP_GRACE_S

POLL_S = 1.0
# Slurm gives a cancelled job KillWait (30 s by default) and its nodes some time to report.
GONE_S = 120.0
# After a job is over its agents' last files may take a moment to be seen from here.
SEEN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """How a run stands after its cancel. proof: a line each, of what shows that nothing is left. unproven: what could
    not be shown, empty where all could."""

    summary: RunSummary
    proof: tuple[str, ...] = ()
    unproven: str = ""


def cancel(run: RunFolder, say: Callable[[str], None], *, grace_s: float = STOP_GRACE_S) -> Cancelled:
    """Let the ranks save and stop; end them by force after the grace, or at once where there is nothing to save.

    Raises InputError where nothing of the run is queued or running; SchedulerSilent where the scheduler does not
    answer: no further attempt will start even so.
    """
    kind = read_job(run.job).cluster.kind
    if kind is ClusterKind.SLURM:
        return SlurmCancel(run, say, grace_s=grace_s and max(grace_s, _lead_s(run))).carry_out()
    say(f"asking {run.root.name} to save and stop")
    if kind is ClusterKind.HOSTS:
        return _cancel_hosts(run, grace_s)
    return _cancel_here(run, grace_s)


def _cancel_here(run: RunFolder, grace_s: float) -> Cancelled:
    summary = cancel_here(run, grace_s=grace_s)
    left = processes_of_run(frozen_run_dir(run))
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        return Cancelled(summary=summary, unproven=f"these processes do not even end when killed: {pids}")
    return Cancelled(summary=summary, proof=("no process of the run is left on this host",))


def _lead_s(run: RunFolder) -> float:
    """How long the ranks of a queued run may need for a step and a checkpoint, as its plan says."""
    plan = read_record(run.memory_plan, MemoryPlan)
    return 0.0 if plan is None else asked_of_slurm(plan).lead_s


def _cancel_hosts(run: RunFolder, grace_s: float) -> Cancelled:
    before = summarise(run)
    if before.status not in (Status.RUNNING, Status.UNKNOWN):
        raise not_running(before)
    left = cancel_hosts(run, grace_s=grace_s)
    proof = tuple(f"{each.host}: nothing is left ({each.num_found} ended by force)" for each in left if each.num_found)
    clean = [each.host for each in left if each.num_found == 0]
    if clean:
        proof = (*proof, f"{', '.join(clean)}: nothing was left")
    return Cancelled(summary=settled(run), proof=proof, unproven=unproven(left))


class SlurmCancel:
    """The cancel of a queued or running job.

    In this order, so that nothing starts behind our back: control/cancelled, which no attempt starts against; the stop
    file, where ranks have something to save; scancel, once they have ended or the grace is over.
    """

    def __init__(self, run: RunFolder, say: Callable[[str], None], *, grace_s: float, slurm: Ask = ask) -> None:
        self._run = run
        self._say = say
        self._grace_s = grace_s
        self._slurm = slurm
        self._queue = SlurmQueue(slurm, max_age_s=0.0)

    def carry_out(self) -> Cancelled:
        """Cancel it and wait until the job is gone."""
        name = self._run.root.name
        if read_submission(self._run) is None:
            raise not_running(summarise(self._run))
        before = summarise(self._run, self._queue)
        if before.status not in (Status.QUEUED, Status.RUNNING, Status.UNKNOWN):
            raise not_running(before)
        write_exclusively(self._run.cancelled, f"{time.time():.0f}\n")
        job = self._job()
        if job is not None and job.is_live and self._has_something_to_save():
            self._say(f"asking {name} (job {job.job_id}) to save and stop")
            ask_to_stop(self._run, last_attempt(self._run), CANCEL)
            wait_until(lambda: self._have_stopped() or self._is_gone(), timeout_s=self._grace_s, poll_s=POLL_S)
        if job is not None and not self._is_gone():
            self._say(f"cancelling job {job.job_id}")
            self._scancel(job)
        return self._proven(job)

    def _job(self) -> Job | None:
        """What Slurm says of the job now; None where it is not known any more. Raises SchedulerSilent."""
        submission, jobs = read_submission(self._run), self._queue.jobs()
        assert submission is not None
        if jobs is None:
            raise SchedulerSilent(
                f"the scheduler does not answer ({self._queue.silence}): run {self._run.root.name} is marked as "
                "cancelled and starts no further attempt; run fitlaunch cancel again for what may be running"
            )
        return find_job(jobs, submission)

    def _is_gone(self) -> bool:
        job = self._job()
        return job is None or job.is_over

    def _has_something_to_save(self) -> bool:
        attempt = last_attempt(self._run)
        start = read_record(self._run.attempt_start(attempt), AttemptStart) if attempt else None
        submission = read_submission(self._run)
        is_newest = start is not None and submission is not None and start.submission == submission.number
        return is_newest and self._run.started(attempt).exists()

    def _have_stopped(self) -> bool:
        """Whether the ranks have left their result and every node its end: what is left of the job is its script."""
        attempt = last_attempt(self._run)
        return has_result(self._run, attempt) and len(read_node_ends(self._run, attempt)) == self._num_nodes()

    def _num_nodes(self) -> int:
        return read_job(self._run.job).nodes

    def _scancel(self, job: Job) -> None:
        try:
            self._slurm(cancel_argv((job.job_id,)))
        except SchedulerRefused as refused:
            raise SubmitError(f"Slurm does not cancel job {job.job_id}: {refused}") from None

    def _proven(self, job: Job | None) -> Cancelled:
        """The job is gone, and every node of its last attempt has said how its ranks ended."""
        proof, doubts = [], []
        if wait_until(self._is_gone, timeout_s=GONE_S, poll_s=POLL_S):
            proof.append("the scheduler knows no such job" if job is None else f"job {job.job_id} is over")
        elif job is not None:
            doubts.append(f"job {job.job_id} was still there {GONE_S:.0f} s after scancel")
        attempt = last_attempt(self._run)
        if attempt and self._run.attempt_start(attempt).exists():
            num = self._num_nodes()
            wait_until(lambda: len(read_node_ends(self._run, attempt)) == num, timeout_s=SEEN_S, poll_s=POLL_S)
            ended = len(read_node_ends(self._run, attempt))
            if ended == num:
                says = "1 node says" if num == 1 else f"{num} nodes say"
                proof.append(f"the ranks of attempt {attempt} have ended, as its {says}")
            else:
                have = "node has not said how its" if num == 1 else "nodes have not said how their"
                doubts.append(f"of attempt {attempt}, {num - ended} of {num} {have} ranks ended")
        elif not attempt:
            proof.append("no attempt was ever started")
        return Cancelled(summary=summarise(self._run, self._queue), proof=tuple(proof), unproven="; ".join(doubts))
