"""One start of a run on several hosts, as its launcher follows it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

from launcher.node.deadline import Deadline
from launcher.node.run import FAILURE_GRACE_S, RESULT_GRACE_S, TERM_GRACE_S, Say
from launcher.node.signals import StopRequests
from launcher.render.types import LaunchPlan
from launcher.runs.judge import Ending, judge
from launcher.runs.layout import RunFolder
from launcher.runs.logs import any_rank_started
from launcher.runs.markers import has_failure, has_result
from launcher.runs.outcome import Observer, Outcome
from launcher.runs.records import Event, NodeEnd, Status, append_record, read_record
from launcher.runs.state import write_state
from launcher.runs.stopping import ask_to_stop
from launcher.spec import HostSlots
from launcher.targets.last_state import not_started, write_last_state
from launcher.targets.left import end_on_hosts, unproven
from launcher.targets.lost import Lost, write_lost
from launcher.targets.observed import Observed

POLL_S = 0.2
A_RANK = "a rank failed"
# The agents keep the same times; they end their own ranks first, and can say how.
MARGIN_S = 15.0
END_S = 20.0


class Ranks(Protocol):
    """What starts the ranks on the hosts and knows, from here, how they do."""

    lost: list[Lost]

    @property
    def are_over(self) -> bool: ...
    def start(self) -> None: ...
    def look(self) -> None: ...
    def failure(self) -> str: ...
    def end(self, timeout_s: float) -> None: ...
    def last_words(self) -> tuple[str, ...]: ...


class HostsAttempt:
    """Starts the ranks, follows them, ends them by force where that is due, and says how they ended.

    say takes a line for the user now and then. stop_grace_s: how long the ranks may take to save and stop.
    """

    def __init__(
        self,
        run: RunFolder,
        launch: LaunchPlan,
        number: int,
        requests: StopRequests,
        ranks: Ranks,
        *,
        hosts: Sequence[HostSlots],
        observer: Observer | None,
        say: Say,
        stop_grace_s: float,
    ) -> None:
        self.run = run
        self.launch = launch
        self.number = number
        self._requests = requests
        self._ranks = ranks
        self._hosts = hosts
        self._say_to_user = say
        self._stop_grace_s = stop_grace_s
        self._observed = Observed(run, observer, self._note)
        self._started_at_s = time.time()
        self._deadline = Deadline()
        self._is_stop_asked = False
        self._has_failed = False
        self._has_result = False
        self._was_forced = False
        self._unproven = ""

    def run_to_its_end(self) -> Outcome:
        """Start, follow and end; whatever happens on the way, no process of the run is left where ssh reaches."""
        try:
            self.run.attempt(self.number).mkdir(parents=True)
            write_state(self.run, Status.RUNNING, attempt=self.number)
            self._ranks.start()
            self._note("start", f"on {', '.join(each.host for each in self._hosts)}")
            self._follow()
        except OSError as error:
            text = f"{error.filename or self.run.root}: {error.strerror or error}"
            raise not_started(self.run, self.number, text) from error
        finally:
            self._leave_nothing()
        self._observed.look()
        return self._conclude()

    # following

    def _follow(self) -> None:
        while not self._ranks.are_over:
            self._observed.look()
            self._ranks.look()
            self._heed_the_user()
            self._heed_markers()
            if self._deadline.has_come:
                self._was_forced = True
                self._note("end by force", self._deadline.why)
                return
            time.sleep(POLL_S)
        self._ranks.look()

    def _heed_the_user(self) -> None:
        if self._requests.first is not None and not self._is_stop_asked:
            self._ask_to_stop(self._requests.first.name)
        if self._requests.is_forced:
            self._deadline.set(0.0, "the user asked again")

    def _ask_to_stop(self, cause: str) -> None:
        self._is_stop_asked = True
        try:
            ask_to_stop(self.run, self.number, cause)
        except OSError as error:
            self._deadline.set(0.0, f"the stop file could not be written ({error.strerror})")
        if self.run.started(self.number).exists():
            self._say(f"{cause}: the ranks save at the end of this step and stop; once more ends them at once")
            grace_s = self._stop_grace_s
            self._deadline.set(grace_s + MARGIN_S, f"the ranks had not stopped {grace_s:.0f} s after {cause}")
        else:
            self._say(f"{cause}: no step was taken yet, so there is nothing to save; ending the ranks")
            self._deadline.set(TERM_GRACE_S, "no step was taken yet")

    def _heed_markers(self) -> None:
        """Whoever has failed, or has done all its work, may not keep the rest waiting for ever."""
        if not self._has_failed and (why := self._failure()):
            self._has_failed = True
            self._note("rank failed" if why == A_RANK else "host lost", "" if why == A_RANK else why)
            self._deadline.set(FAILURE_GRACE_S + MARGIN_S, why)
        if not self._has_result and has_result(self.run, self.number):
            self._has_result = True
            self._deadline.set(RESULT_GRACE_S + MARGIN_S, "the ranks did not exit when their work was done")

    def _failure(self) -> str:
        if has_result(self.run, self.number):
            return ""
        return A_RANK if has_failure(self.run, self.number) else self._ranks.failure()

    # ending

    def _leave_nothing(self) -> None:
        """Whatever the ranks were started by, each host ends what is left there, and says so."""
        self._ranks.end(END_S)
        left = end_on_hosts(self.run, self._hosts, python=self.launch.argv[0])
        for each in left:
            if each.num_found:
                self._note("ended what was left", f"{each.num_found} processes on {each.host}")
        self._unproven = unproven(left)
        if self._unproven:
            self._note("not proven", self._unproven)
            self._say(f"{self._unproven}; ranks that lose their launcher end themselves")

    def _conclude(self) -> Outcome:
        is_asked = self._is_stop_asked or self.run.stop_file(self.number).exists()
        if not (is_asked or has_result(self.run, self.number) or any_rank_started(self.run, self.number)):
            raise not_started(self.run, self.number, "\n".join(self._ranks.last_words()) or "no rank was started")
        for lost in self._ranks.lost:
            write_lost(self.run, self.number, self._started_at_s, lost)
        ends = self._ends()
        codes = [end.exit_code for end in ends if end.exit_code]
        ending = Ending(
            is_asked=is_asked,
            forced=self._deadline.why if self._was_forced and is_asked and not self._has_failed else "",
            is_abandoned=False,
            deaths=tuple(sorted((death for end in ends for death in end.deaths), key=lambda death: death.seen_at_s)),
            agent=self.launch.argv[2],
            agent_exit_code=codes[0] if codes else 0,
        )
        outcome = judge(self.run, self.number, ending)
        self._note("end", outcome.status.value)
        write_last_state(self.run, outcome, self._say)
        return outcome

    def _ends(self) -> tuple[NodeEnd, ...]:
        found = (read_record(self.run.node_end(self.number, node), NodeEnd) for node in range(len(self._hosts)))
        return tuple(end for end in found if end is not None)

    # what is said and written down

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._say_to_user(text)

    def _note(self, stage: str, detail: str = "") -> None:
        """An event for the record; a full disk must not keep the launcher from ending the ranks."""
        event = Event(time_s=time.time(), source="launcher", attempt=self.number, stage=stage, detail=detail)
        with contextlib.suppress(OSError):
            append_record(self.run.events, event)
