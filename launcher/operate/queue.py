"""The scheduler's word for all runs at once: one squeue, with a limit on how long anybody waits for it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

from launcher.runs.diagnosis.types import SchedulerWord
from launcher.runs.layout import RunFolder
from launcher.runs.registry import find_job, read_submission
from launcher.scheduler.client import Ask, SchedulerRefused, SchedulerSilent, ask
from launcher.scheduler.details import hostnames
from launcher.scheduler.jobs import Job, by_id, my_jobs

# A list of runs must not hang on a controller that does.
PATIENCE_S = 5.0


class SlurmQueue:
    """A launcher.runs.status.Queue over squeue. Asked when it is first needed, and again once that is max_age_s old.

    silence: what was said instead of an answer, empty where there was one or nobody asked.
    """

    def __init__(
        self, run: Ask | None = None, *, max_age_s: float = float("inf"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run or functools.partial(ask, timeout_s=PATIENCE_S)
        self._max_age_s = max_age_s
        self._clock = clock
        self._asked_s: float | None = None
        self._jobs: Mapping[str, Job] | None = None
        self.silence = ""

    def jobs(self) -> Mapping[str, Job] | None:
        """This user's jobs by id; None where the scheduler does not answer."""
        if self._asked_s is None or self._clock() - self._asked_s > self._max_age_s:
            self._ask()
            self._asked_s = self._clock()
        return self._jobs

    def _ask(self) -> None:
        try:
            self._jobs, self.silence = by_id(my_jobs(self._run)), ""
        except (SchedulerSilent, SchedulerRefused) as error:
            self._jobs, self.silence = None, str(error)

    def word(self, run: RunFolder) -> SchedulerWord | None:
        """What the scheduler says of the newest job of a run, with the names of its nodes; None where nothing."""
        submission = read_submission(run)
        jobs = None if submission is None else self.jobs()
        job = None if jobs is None or submission is None else find_job(jobs, submission)
        if job is None:
            return None
        return SchedulerWord(job_id=job.job_id, state=job.state, reason=job.reason, nodes=self._hosts(job.nodes))

    def _hosts(self, nodes: str) -> tuple[str, ...]:
        """scontrol expands a list without asking the controller."""
        try:
            return hostnames(nodes, self._run) if nodes else ()
        except (SchedulerSilent, SchedulerRefused):
            return ()
