"""Cancel a sweep: all of its cells, wherever they are, and none starts again by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from launcher.errors import InputError, Problem, SubmitError
from launcher.node.waiting import wait_until
from launcher.operate.cancel import GONE_S, POLL_S
from launcher.operate.cancel import cancel as cancel_run
from launcher.operate.queue import SlurmQueue
from launcher.report.sweeps import Standing
from launcher.runs.attempts import last_attempt
from launcher.runs.lock import hold_lock
from launcher.runs.records import GOES_ON, Status, write_exclusively
from launcher.runs.stopping import CANCEL, ask_to_stop
from launcher.runs.sweeps import Sweep, SweepFolder, read_arrays, read_sweep
from launcher.scheduler.client import Ask, SchedulerRefused, SchedulerSilent, ask
from launcher.scheduler.jobs import cancel_argv
from launcher.spec import ClusterKind
from launcher.sweeps.standing import standings
from launcher.sweeps.submit import adopt

GOING_ON = GOES_ON | {Status.UNKNOWN}


def cancel(folder: SweepFolder, say: Callable[[str], None], *, grace_s: float) -> tuple[Standing, ...]:
    """Let the cells that run save and stop, end by force those that do not; returns how all stand then.

    Raises InputError where nothing of the sweep goes on; SchedulerSilent where the scheduler does not answer: no cell
    starts even so.
    """
    sweep = read_sweep(folder)
    write_exclusively(folder.cancelled, f"{time.time():.0f}\n")
    if sweep.cluster is ClusterKind.SLURM:
        return SlurmSweepCancel(folder, sweep, say, grace_s=grace_s).carry_out()
    going_on = [each for each in standings(folder, sweep, None) if each.status is Status.RUNNING]
    if not going_on:
        raise nothing_goes_on(sweep)
    for each in going_on:
        cancel_run(folder.run(each.cell), say, grace_s=grace_s)
    return standings(folder, sweep, None)


def nothing_goes_on(sweep: Sweep) -> InputError:
    """There is nothing to cancel."""
    return InputError([Problem(field="sweep", value=sweep.sweep_id, rule="has no cell that is queued or running")])


class SlurmSweepCancel:
    """The cancel of arrays, in the order of a single run's (launcher.operate.cancel): no cell starts any more; those
    that wait are taken out of the queue; those that run save and stop; then scancel for what is left."""

    def __init__(
        self, folder: SweepFolder, sweep: Sweep, say: Callable[[str], None], *, grace_s: float, slurm: Ask = ask
    ) -> None:
        self._folder = folder
        self._sweep = sweep
        self._say = say
        self._grace_s = grace_s
        self._slurm = slurm
        self._queue = SlurmQueue(slurm, max_age_s=0.0)

    def carry_out(self) -> tuple[Standing, ...]:
        """Cancel all, and wait until the jobs are gone."""
        going_on = self._going_on()
        for each in going_on:
            write_exclusively(self._folder.run(each.cell).cancelled, f"{time.time():.0f}\n")
        if not going_on:
            raise nothing_goes_on(self._sweep)
        with hold_lock(self._folder.lock, what=f"sweep {self._sweep.sweep_id}"):
            adopt(self._folder, self._sweep)
        waiting = [each for each in going_on if each.status is Status.QUEUED]
        self._say(f"cancelling {len(going_on)} cells, {len(waiting)} of them waiting")
        self._scancel("--state=PENDING")
        for each in going_on:
            self._ask_to_stop(each)
        self._wait(self._grace_s)
        if self._going_on():
            self._scancel()
            self._wait(GONE_S)
        return standings(self._folder, self._sweep, self._queue)

    def _going_on(self) -> list[Standing]:
        found = [each for each in standings(self._folder, self._sweep, self._queue) if each.status in GOING_ON]
        if self._queue.silence:
            for each in found:
                write_exclusively(self._folder.run(each.cell).cancelled, f"{time.time():.0f}\n")
            raise SchedulerSilent(
                f"the scheduler does not answer ({self._queue.silence}): the cells are marked as cancelled and start "
                "no further attempt; run fitlaunch sweep cancel again for what may be running"
            )
        return found

    def _ask_to_stop(self, standing: Standing) -> None:
        run = self._folder.run(standing.cell)
        attempt = last_attempt(run)
        if standing.status is Status.RUNNING and attempt and run.started(attempt).exists():
            ask_to_stop(run, attempt, CANCEL)

    def _scancel(self, *options: str) -> None:
        ids = [array.job_id for array in read_arrays(self._folder) if array.job_id is not None]
        if not ids:
            return
        try:
            self._slurm((*cancel_argv(()), *options, *ids))
        except SchedulerRefused as refused:
            if "Invalid job id" not in str(refused):  # Slurm has forgotten it: it is over
                raise SubmitError(f"Slurm does not cancel the sweep: {refused}") from None

    def _wait(self, timeout_s: float) -> None:
        wait_until(lambda: not self._has_jobs(), timeout_s=timeout_s, poll_s=POLL_S)

    def _has_jobs(self) -> bool:
        return any(each.status in GOES_ON for each in self._going_on())


def cancelled_words(cells: Sequence[Standing]) -> str:
    """What is left, empty where nothing is."""
    left = [str(each.cell.number) for each in cells if each.status in GOING_ON]
    return f"cells {', '.join(left)} have not ended" if left else ""
