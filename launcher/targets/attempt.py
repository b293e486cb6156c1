"""One start of a run on this host, from its first process to its last."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable

import msgspec

from launcher.errors import SubmitError
from launcher.render.environment import inherited_environment
from launcher.render.types import LaunchPlan
from launcher.runs.agent_log import is_closing
from launcher.runs.layout import RunFolder
from launcher.runs.logs import agent_log, any_rank_started, log_tail
from launcher.runs.markers import has_failure, has_result
from launcher.runs.outcome import Observer, Outcome
from launcher.runs.processes import (
    ProcessId,
    descendants,
    end_processes,
    processes_of_run,
    this_process,
    wait_until_gone,
)
from launcher.runs.records import Event, Status, append_record, write_atomically
from launcher.runs.state import write_state
from launcher.runs.tail import LineTail, decode_event, decode_metrics
from launcher.spec import JobSpec
from launcher.targets.judge import Ending, judge
from launcher.targets.ranks import RankWatch
from launcher.targets.signals import StopRequests

POLL_S = 0.2
FAILURE_GRACE_S = 20.0
RESULT_GRACE_S = 120.0
TERM_GRACE_S = 5.0
EXIT_GRACE_S = 2.0

Say = Callable[[str], None]


class Attempt:
    """Starts the program that starts the ranks, follows it, and ends all of it by force where that is due.

    say takes a line for the user now and then. stop_grace_s: how long the ranks may take to save and stop.
    """

    def __init__(
        self,
        run: RunFolder,
        launch: LaunchPlan,
        number: int,
        requests: StopRequests,
        *,
        observer: Observer | None,
        say: Say,
        stop_grace_s: float,
    ) -> None:
        self.run = run
        self.launch = launch
        self.number = number
        self._requests = requests
        self._observer = observer
        self._say_to_user = say
        self._stop_grace_s = stop_grace_s
        self._watch = RankWatch(launch.run_dir, _num_ranks(launch))
        self._events = LineTail.from_end(run.events)
        self._metrics = LineTail.from_end(run.metrics)
        self._deadline_s: float | None = None
        self._forced = ""
        self._is_stop_asked = False
        self._has_failed = False
        self._has_result = False
        self._is_abandoned = False
        self._was_forced = False

    def run_to_its_end(self) -> Outcome:
        """Start, follow and end; whatever happens on the way, no process of the run is left."""
        child = self._start()
        try:
            self._follow(child)
        finally:
            self._leave_nothing(child)
        self._observe()
        return self._conclude(child.returncode)

    # starting

    def _start(self) -> subprocess.Popen[bytes]:
        log = agent_log(self.run, self.number)
        try:
            log.parent.mkdir(parents=True)
            write_state(self.run, Status.RUNNING, attempt=self.number)
            with log.open("wb") as output:
                child = subprocess.Popen(
                    self.launch.argv,
                    cwd=self.run.attempt(self.number),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            text = f"{error.filename or self.launch.argv[0]}: {error.strerror or error}"
            raise self._not_started(text) from error
        self._note("start", f"pid {child.pid}")
        return child

    def _environment(self) -> dict[str, str]:
        return {
            **inherited_environment(os.environ),
            **self.launch.env,
            "FITLAUNCH_ATTEMPT": str(self.number),
            "FITLAUNCH_PLAN_HASH": self.launch.hash,
            "FITLAUNCH_LAUNCHER": str(this_process()),
        }

    def _not_started(self, text: str) -> SubmitError:
        with contextlib.suppress(OSError):
            write_state(self.run, Status.FAILED, attempt=self.number, exit_code=SubmitError.exit_code, reason=text)
        return SubmitError(f"run {self.launch.run_id} could not be started: {text}")

    # following

    def _follow(self, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            self._observe()
            self._watch.look()
            self._heed_the_user()
            self._heed_markers()
            if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
                self._end_by_force(child, TERM_GRACE_S)
                return
            time.sleep(POLL_S)
        self._watch.look()

    def _observe(self) -> None:
        events = [event for line in self._events.read() if (event := decode_event(line)) is not None]
        metrics = [record for line in self._metrics.read() if (record := decode_metrics(line)) is not None]
        if self._observer is None:
            return
        try:
            self._observer.update(events=events, metrics=metrics)
        except Exception as error:  # noqa: BLE001  a progress bar, or its closed terminal, must not cost a training
            self._observer = None
            self._note("progress is no longer shown", repr(error))

    def _heed_the_user(self) -> None:
        if self._requests.first is not None and not self._is_stop_asked:
            self._ask_to_stop(self._requests.first.name)
        if self._requests.is_forced:
            self._end_at(time.monotonic(), "the user asked again")

    def _ask_to_stop(self, cause: str) -> None:
        self._is_stop_asked = True
        self._note("stop asked", cause)
        now_s = time.monotonic()
        try:
            write_atomically(self.run.stop_file(self.number), cause + "\n")
        except OSError as error:
            self._end_at(now_s, f"the stop file could not be written ({error.strerror})")
        if self.run.started(self.number).exists():
            self._say(f"{cause}: the ranks save at the end of this step and stop; once more ends them at once")
            self._end_at(
                now_s + self._stop_grace_s, f"the ranks had not stopped {self._stop_grace_s:.0f} s after {cause}"
            )
        else:
            self._say(f"{cause}: no step was taken yet, so there is nothing to save; ending the ranks")
            self._end_at(now_s, "no step was taken yet")

    def _heed_markers(self) -> None:
        """Whoever has failed, or has done all its work, may not keep the rest waiting for ever."""
        if not self._has_failed and self._is_failing():
            self._has_failed = True
            self._note("rank failed")
            self._end_at(time.monotonic() + FAILURE_GRACE_S, "a rank failed")
        if not self._has_result and has_result(self.run, self.number):
            self._has_result = True
            self._end_at(time.monotonic() + RESULT_GRACE_S, "the ranks did not exit when their work was done")

    def _is_failing(self) -> bool:
        if has_failure(self.run, self.number):
            return True
        return self._watch.any_ended and is_closing(self._agent_text())

    def _end_at(self, deadline_s: float, why: str) -> None:
        """The earliest deadline counts, and so does its reason."""
        if self._deadline_s is None or deadline_s < self._deadline_s:
            self._deadline_s = deadline_s
            self._forced = why

    # ending

    def _end_by_force(self, child: subprocess.Popen[bytes], term_grace_s: float) -> None:
        self._was_forced = True
        self._note("end by force", self._forced)
        survivors = end_processes(lambda: self._processes(child), term_grace_s=term_grace_s)
        if survivors:
            pids = ", ".join(str(process.pid) for process in survivors)
            self._say(f"these processes do not even end when killed (a hung device?): {pids}")
        _reap(child)

    def _processes(self, child: subprocess.Popen[bytes]) -> tuple[ProcessId, ...]:
        """All of the run's processes: by their environment, and the child's family, whatever it did to its own."""
        by_family = descendants(child.pid) if child.poll() is None else ()  # once reaped, its pid may be another's
        return tuple(sorted({*processes_of_run(self.launch.run_dir), *by_family}))

    def _leave_nothing(self, child: subprocess.Popen[bytes]) -> None:
        """When the program that started the ranks has ended they have too, unless somebody killed it."""
        if child.poll() is None:
            self._end_by_force(child, TERM_GRACE_S)
        elif wait_until_gone(lambda: self._processes(child), timeout_s=EXIT_GRACE_S):
            self._is_abandoned = True
            self._forced = self._forced or "the program that started the ranks is gone"
            self._end_by_force(child, FAILURE_GRACE_S)

    def _conclude(self, agent_exit_code: int | None) -> Outcome:
        is_asked = self._is_stop_asked or self.run.stop_file(self.number).exists()
        if not (is_asked or self._has_result or any_rank_started(self.run, self.number)):
            raise self._not_started("\n".join(log_tail(self.run, self.number, None)) or "no rank was started")
        is_the_users = self._was_forced and self._is_stop_asked and not self._has_failed
        ending = Ending(
            is_asked=is_asked,
            forced=self._forced if is_the_users else "",
            is_abandoned=self._is_abandoned,
            deaths=self._watch.deaths(self._agent_text()),
            agent=self.launch.argv[2],
            agent_exit_code=agent_exit_code,
        )
        outcome = judge(self.run, self.number, ending)
        self._note("end", outcome.status.value)
        self._write_last_state(outcome)
        return outcome

    # what is said and written down

    def _agent_text(self) -> str:
        return agent_log(self.run, self.number).read_text(errors="replace")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._say_to_user(text)

    def _note(self, stage: str, detail: str = "") -> None:
        """An event for the record; a full disk must not keep the launcher from ending the ranks."""
        event = Event(time_s=time.time(), source="launcher", attempt=self.number, stage=stage, detail=detail)
        with contextlib.suppress(OSError):
            append_record(self.run.events, event)

    def _write_last_state(self, outcome: Outcome) -> None:
        try:
            write_state(
                self.run,
                outcome.status,
                attempt=self.number,
                exit_code=outcome.exit_code,
                reason=outcome.first_cause,
            )
        except OSError as error:
            self._say(f"{self.run.state} could not be written: {error.strerror or error}")


def _reap(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=TERM_GRACE_S)


def _num_ranks(launch: LaunchPlan) -> int:
    """Ranks on this host, from the job in the plan."""
    return msgspec.json.decode(launch.files["job.json"], type=JobSpec).gpus_per_node
