"""Start a run on this host, follow it, and leave nothing behind.

How an attempt ends, whoever ends it:
- by itself: the ranks write a marker and exit, and so does the program that started them;
- the user asks (INT, TERM, HUP): a stop file; all ranks save at the same step and end. No signal is sent, for one
  would reach the ranks at different steps. If they have not ended after the grace, or the user asks again: by force;
- a rank fails: the others get FAILURE_GRACE_S to write what they know, then by force;
- this process is killed: every rank watches it and ends itself, and then so does the program that started them.
By force means TERM, then KILL, to every process that was started for this run, wherever it went.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.errors import InputError, Interrupted, Problem, SubmitError
from launcher.render.environment import inherited_environment
from launcher.render.types import LaunchPlan
from launcher.runs.agent_log import is_closing
from launcher.runs.cause import Cause, first_cause
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.logs import agent_log, any_rank_started, log_tail
from launcher.runs.markers import Markers, has_failure, last_attempt, read_markers
from launcher.runs.outcome import Observer, Outcome
from launcher.runs.processes import ProcessId, end_processes, processes_of_run, this_process, wait_until_gone
from launcher.runs.records import Event, RunState, Status, append_record, read_record, write_atomically, write_record
from launcher.runs.tail import LineTail, decode_event, decode_metrics
from launcher.spec import JobSpec
from launcher.targets.folder import read_launch_plan, write_run_folder
from launcher.targets.ports import port_is_free
from launcher.targets.ranks import RankWatch
from launcher.targets.signals import StopRequests, collect_stop_requests

POLL_S = 0.2
STOP_GRACE_S = 120.0
FAILURE_GRACE_S = 20.0
TERM_GRACE_S = 5.0
EXIT_GRACE_S = 2.0
LEFTOVER_WAIT_S = 10.0
PORT_WAIT_S = 5.0

Say = Callable[[str], None]


def _silent(_text: str) -> None:
    """Say nothing."""


def start_and_follow(
    launch: LaunchPlan, *, observer: Observer | None = None, say: Say = _silent, stop_grace_s: float = STOP_GRACE_S
) -> Outcome:
    """Write the run folder, start the job and follow it to its end.

    say takes a line for the user now and then. Raises SubmitError when nothing could be started.
    """
    run = write_run_folder(launch, now_s=time.time())
    return start_attempt(run, observer=observer, say=say, stop_grace_s=stop_grace_s)


def start_attempt(
    run: RunFolder, *, observer: Observer | None = None, say: Say = _silent, stop_grace_s: float = STOP_GRACE_S
) -> Outcome:
    """Start the next attempt of a rendered, stopped or failed run, and follow it to its end.

    Raises InputError for a run that is finished; SubmitError when its plan changed, when it is running already,
    or when nothing could be started.
    """
    launch = read_launch_plan(run)
    with collect_stop_requests() as requests, hold_lock(run.lock, what=f"run {launch.run_id}"):
        number = last_attempt(run) + 1
        _refuse_if_finished(run, number - 1)
        _refuse_if_still_running(launch)
        _refuse_if_port_taken(launch)
        if requests.first is not None:
            raise Interrupted("stopped before anything was started")
        attempt = _Attempt(run, launch, number, requests, observer=observer, say=say, stop_grace_s=stop_grace_s)
        return attempt.run_to_its_end()


def _refuse_if_finished(run: RunFolder, number: int) -> None:
    if number and run.finished(number).exists():
        problem = Problem(
            field="run", value=run.root.name, rule="is finished", way_out=f"its result is in {run.result}; launch anew"
        )
        raise InputError([problem])


def _refuse_if_still_running(launch: LaunchPlan) -> None:
    """Ranks of a launcher that was killed need a moment to notice."""
    left = wait_until_gone(lambda: processes_of_run(launch.run_dir), timeout_s=LEFTOVER_WAIT_S)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise SubmitError(f"processes of run {launch.run_id} are still running (pids {pids}): cancel it first")


def _refuse_if_port_taken(launch: LaunchPlan) -> None:
    """DeepSpeed's port is part of the frozen plan; another program may have taken it since."""
    option = "--master_port="
    for port in (int(word.removeprefix(option)) for word in launch.argv if word.startswith(option)):
        end = time.monotonic() + PORT_WAIT_S
        while not port_is_free(port):
            if time.monotonic() > end:
                raise SubmitError(f"port {port} of run {launch.run_id} is taken by another program: launch anew")
            time.sleep(POLL_S)


class _Attempt:
    """One start of a run, from the first process to the last."""

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
        self._why_ended = ""
        self._is_stop_asked = False
        self._has_failed = False

    def run_to_its_end(self) -> Outcome:
        """Start, follow and end; whatever happens, no process of the run is left."""
        child = self._start()
        try:
            self._follow(child)
        finally:
            self._leave_nothing(child)
        self._observe()
        return self._judge(child.returncode)

    # starting

    def _start(self) -> subprocess.Popen[bytes]:
        log = agent_log(self.run, self.number)
        try:
            log.parent.mkdir(parents=True)
            self._write_state(Status.RUNNING)
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
            self._write_state(Status.FAILED, exit_code=SubmitError.exit_code, reason=text)
        return SubmitError(f"run {self.launch.run_id} could not be started: {text}")

    # following

    def _follow(self, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            self._observe()
            self._watch.look()
            self._heed_the_user()
            self._heed_failures()
            if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
                self._end_by_force(TERM_GRACE_S)
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
        except OSError:
            self._observer = None  # its terminal is gone; the run goes on

    def _heed_the_user(self) -> None:
        if self._requests.first is not None and not self._is_stop_asked:
            self._ask_to_stop(self._requests.first.name)
        if self._requests.is_forced:
            self._end_at(time.monotonic(), "the user asked again")

    def _ask_to_stop(self, cause: str) -> None:
        self._is_stop_asked = True
        self._note("stop asked", cause)
        try:
            write_atomically(self.run.stop_file(self.number), cause + "\n")
        except OSError as error:
            self._end_at(time.monotonic(), f"the stop file could not be written ({error.strerror})")
        if not self.run.started(self.number).exists():
            self._say(f"{cause}: no step was taken yet, so there is nothing to save; ending the ranks")
            self._end_at(time.monotonic(), "no step was taken yet")
            return
        self._say(f"{cause}: the ranks save at the end of this step and stop; once more ends them at once")
        self._end_at(
            time.monotonic() + self._stop_grace_s, f"the ranks had not stopped {self._stop_grace_s:.0f} s after {cause}"
        )

    def _heed_failures(self) -> None:
        if self._has_failed or not self._is_failing():
            return
        self._has_failed = True
        self._note("rank failed")
        self._end_at(time.monotonic() + FAILURE_GRACE_S, "a rank failed")

    def _is_failing(self) -> bool:
        if has_failure(self.run, self.number):
            return True
        return self._watch.any_ended and is_closing(self._agent_text())

    def _end_at(self, deadline_s: float, why: str) -> None:
        """The earliest deadline counts, and so does its reason."""
        if self._deadline_s is None or deadline_s < self._deadline_s:
            self._deadline_s = deadline_s
            self._why_ended = why

    # ending

    def _processes(self) -> tuple[ProcessId, ...]:
        return processes_of_run(self.launch.run_dir)

    def _end_by_force(self, term_grace_s: float) -> None:
        self._note("end by force", self._why_ended)
        survivors = end_processes(self._processes, term_grace_s=term_grace_s)
        if survivors:
            pids = ", ".join(str(process.pid) for process in survivors)
            self._say(f"these processes do not even end when killed (a hung device?): {pids}")

    def _leave_nothing(self, child: subprocess.Popen[bytes]) -> None:
        """When the program that started the ranks has ended they have too, unless somebody killed it."""
        if child.poll() is None:
            self._end_by_force(TERM_GRACE_S)
        elif wait_until_gone(self._processes, timeout_s=EXIT_GRACE_S):
            self._why_ended = self._why_ended or "the program that started the ranks is gone"
            self._end_by_force(FAILURE_GRACE_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=TERM_GRACE_S)

    def _judge(self, agent_exit_code: int | None) -> Outcome:
        """The outcome, from the markers."""
        markers = read_markers(self.run, self.number)
        is_asked = self._is_stop_asked or self.run.stop_file(self.number).exists()
        if not (is_asked or markers.finished or any_rank_started(self.run, self.number)):
            raise self._not_started("\n".join(log_tail(self.run, self.number, None)) or "no rank was started")
        status = self._status(markers, is_asked)
        cause = self._cause(markers, status, -1 if agent_exit_code is None else agent_exit_code)
        outcome = Outcome(
            run_dir=self.run.root,
            status=status,
            exit_code=0 if status is Status.FINISHED else Interrupted.exit_code if is_asked else 5,
            attempt=self.number,
            finished=markers.finished,
            stopped=markers.stopped,
            failures=markers.failures,
            first_cause=cause.text,
            log_tail=log_tail(self.run, self.number, cause.rank) if status is Status.FAILED else (),
            measurements=markers.measurements,
        )
        self._note("end", status.value)
        self._write_last_state(outcome)
        return outcome

    def _status(self, markers: Markers, is_asked: bool) -> Status:
        if markers.finished:
            return Status.FINISHED
        stopped_early = is_asked and markers.started is None and not markers.failures
        return Status.STOPPED if markers.stopped or stopped_early else Status.FAILED

    def _cause(self, markers: Markers, status: Status, agent_exit_code: int) -> Cause:
        if status is Status.FINISHED:
            return Cause(text="", rank=None)
        if markers.stopped:
            return Cause(text=f"stopped after step {markers.stopped.step} ({markers.stopped.cause})", rank=None)
        if status is Status.STOPPED:
            return Cause(text="stopped before the first step", rank=None)
        if self._is_stop_asked and not self._has_failed and self._why_ended:
            return Cause(text=f"ended by force: {self._why_ended}", rank=0)
        agent_text = self._agent_text()
        deaths = self._watch.deaths(agent_text)
        agent = Path(self.launch.argv[2]).name if len(self.launch.argv) > 2 else self.launch.argv[0]
        return first_cause(markers.failures, deaths, agent=agent, agent_exit_code=agent_exit_code)

    # what is written down

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
            self._write_state(outcome.status, exit_code=outcome.exit_code, reason=outcome.first_cause)
        except OSError as error:
            self._say(f"{self.run.state} could not be written: {error.strerror or error}")

    def _write_state(self, status: Status, *, exit_code: int | None = None, reason: str = "") -> None:
        before = read_record(self.run.state, RunState)
        me = this_process()
        state = RunState(
            run_id=self.launch.run_id,
            status=status,
            attempt=self.number,
            created_at_s=before.created_at_s if before else time.time(),
            updated_at_s=time.time(),
            launcher_pid=me.pid,
            launcher_start=me.start_ticks,
            host=socket.gethostname(),
            exit_code=exit_code,
            reason=reason,
        )
        write_record(self.run.state, state)


def _num_ranks(launch: LaunchPlan) -> int:
    """Ranks on this host, from the job in the plan."""
    return msgspec.json.decode(launch.files["job.json"], type=JobSpec).gpus_per_node
