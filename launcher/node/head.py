"""What the head node of an attempt does for all of it: accept the start, and say in the end how the attempt went."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher.errors import SubmitError
from launcher.node.admission import Circumstances, Refusal, refusal
from launcher.node.claim import claim
from launcher.node.job import SchedulerJob
from launcher.node.requeue import decide
from launcher.runs.attempts import accepted_attempts, finished_by, last_attempt, superseded_by
from launcher.runs.checkpoints import newest_checkpoint
from launcher.runs.judge import Ending, judge
from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_markers, read_node_ends
from launcher.runs.outcome import Outcome
from launcher.runs.records import AttemptStart, NodeEnd, Status, write_atomically, write_exclusively
from launcher.runs.state import write_state
from launcher.spec import JobSpec, to_json

OTHERS_WAIT_S = 15.0
# A node without power never says how it ended. Slurm notices after its SlurmdTimeout, 300 s by default, and only then
# queues the job again; were the head to leave before, srun would end the job as failed 60 s later.
NODE_LOSS_WAIT_S = 900.0
POLL_S = 0.1

Note = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where the nodes of an attempt meet."""

    head: str
    port: int


class Head:
    """The head node's duties in one attempt. keeps_state: it writes state.json, for no launcher follows the run."""

    def __init__(self, run: RunFolder, attempt: int, spec: JobSpec, job: SchedulerJob | None, *, keeps_state: bool):
        self.run = run
        self.attempt = attempt
        self.spec = spec
        self.job = job
        self.keeps_state = keeps_state
        self._start: AttemptStart | None = None
        self._step_before = _newest_step(run)

    def accept(self, meeting: Meeting) -> Refusal | None:
        """Write attempt.json, which fences off all earlier attempts, and state.json; or say why the start comes to
        nothing, in the attempt's folder too, where the other nodes see it."""
        held = None if self.job is None else claim(self.run, self.job.job_id)
        slurm = self.spec.cluster.slurm
        newest = newest_checkpoint(self.run)
        before = accepted_attempts(self.run, submission=None if held is None else held.submission)
        found = Circumstances(
            attempt=self.attempt,
            submission=None if held is None else held.submission,
            job_id=None if self.job is None else self.job.job_id,
            owner=None if held is None else held.owner,
            is_cancelled=self.job is not None and self.run.cancelled.exists(),
            superseded_by=superseded_by(self.run, self.attempt),
            finished_by=finished_by(self.run),
            before=tuple(start for start in before if start.attempt < self.attempt),
            max_attempts=None if slurm is None else slurm.max_attempts,
            checkpoint_attempt=None if newest is None else newest.attempt,
        )
        refused = refusal(found)
        start = AttemptStart(
            attempt=self.attempt,
            time_s=time.time(),
            head=meeting.head,
            port=meeting.port,
            num_nodes=self.spec.nodes,
            submission=found.submission,
            job_id=found.job_id,
            restart_count=None if self.job is None else self.job.restart_count,
        )
        if refused is None and not write_exclusively(self.run.attempt_start(self.attempt), to_json(start) + "\n"):
            refused = Refusal(reason=f"attempt {self.attempt} was started before", exit_code=0)
        if refused is not None:
            self._refuse(refused)
            return refused
        self._start = start
        if self.keeps_state:
            write_state(self.run, Status.RUNNING, attempt=self.attempt)
        return None

    def conclude(self, end: NodeEnd, ending: Ending, note: Note, is_told_to_end: Callable[[], bool]) -> Outcome:
        """Judge the attempt once all its nodes have ended, or have had time to; then state.json, and the requeue,
        unless a later attempt has the word by then."""
        ends = (end, *self._other_ends(is_told_to_end))
        deaths = sorted((death for each in ends for death in each.deaths), key=lambda death: death.seen_at_s)
        outcome = judge(self.run, self.attempt, dataclasses.replace(ending, deaths=tuple(deaths)))
        unstarted = next((each for each in ends if each.is_unstarted), None)
        if unstarted is not None:
            outcome = _not_startable(outcome, unstarted)
        note("end", outcome.status.value)
        is_superseded = superseded_by(self.run, self.attempt) is not None
        is_requeued = self.job is not None and not is_superseded and self._requeue(note)
        if self.keeps_state and not is_superseded:
            status = Status.QUEUED if is_requeued else outcome.status
            with contextlib.suppress(OSError):
                write_state(
                    self.run, status, attempt=self.attempt, exit_code=outcome.exit_code, reason=outcome.first_cause
                )
        self.let_go()
        return outcome

    def let_go(self) -> None:
        """The head's last word: the agents of the other nodes may exit."""
        with contextlib.suppress(OSError):
            self.run.judged(self.attempt).touch()

    def not_started(self, attempt: int, reason: str, exit_code: int) -> None:
        """Nothing runs, and nobody else would say so. attempt: the last that there was."""
        if self.keeps_state:
            with contextlib.suppress(OSError):
                write_state(self.run, Status.FAILED, attempt=attempt, exit_code=exit_code, reason=reason)

    def _refuse(self, refused: Refusal) -> None:
        if self.run.attempt_start(self.attempt).exists():
            return  # it is another's attempt that goes by this number
        write_atomically(self.run.refused(self.attempt), refused.reason + "\n")
        if refused.exit_code:
            self.not_started(last_attempt(self.run), refused.reason, refused.exit_code)

    def _other_ends(self, is_told_to_end: Callable[[], bool]) -> tuple[NodeEnd, ...]:
        """Wait for the other nodes; for one that is lost, until the scheduler has noticed and ends this job."""
        began_s = time.monotonic()
        while True:
            ends = tuple(end for end in read_node_ends(self.run, self.attempt) if end.node_rank != 0)
            if len(ends) >= self.spec.nodes - 1 or time.monotonic() >= began_s + self._patience_s(is_told_to_end()):
                return ends
            time.sleep(POLL_S)

    def _patience_s(self, is_told_to_end: bool) -> float:
        is_asked_to_stop = self.run.stop_file(self.attempt).exists()
        is_superseded = superseded_by(self.run, self.attempt) is not None
        must_end = self.job is None or is_told_to_end or is_asked_to_stop or is_superseded
        return OTHERS_WAIT_S if must_end else NODE_LOSS_WAIT_S

    def _requeue(self, note: Note) -> bool:
        slurm = self.spec.cluster.slurm
        if slurm is None or self._start is None:
            return False
        decision = decide(
            read_markers(self.run, self.attempt).stopped,
            slurm,
            num_attempts=len(accepted_attempts(self.run, submission=self._start.submission)),
            step_before=self._step_before,
            step_now=_newest_step(self.run),
            is_cancelled=self.run.cancelled.exists(),
        )
        note("requeue" if decision.is_due else "no requeue", decision.why)
        if decision.is_due:
            write_atomically(self.run.requeue(self.attempt), decision.why + "\n")
        return decision.is_due


def _not_startable(outcome: Outcome, node: NodeEnd) -> Outcome:
    """What a node could not find or run is why all of them ended."""
    return dataclasses.replace(
        outcome, status=Status.FAILED, exit_code=SubmitError.exit_code, first_cause=node.ended_by, log_tail=()
    )


def _newest_step(run: RunFolder) -> int | None:
    newest = newest_checkpoint(run)
    return None if newest is None else newest.step
