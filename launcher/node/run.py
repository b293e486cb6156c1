"""The ranks of one node in one attempt, from the first process to the last.

How it ends, whoever ends it:
- by itself: the ranks write a marker and exit, and so does the program that started them;
- somebody asks for a stop: all ranks save at the same step and end; who takes longer than the grace is ended by force;
- a rank fails, here or on another node: the others get FAILURE_GRACE_S to write what they know, then by force;
- this process is killed: every rank watches it and ends itself, and then so does the program that started them.
By force means TERM, then KILL, to every process of this attempt on this node, wherever it went.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from launcher.host.cgroup import oom_kills
from launcher.node.deadline import Deadline
from launcher.node.environment import belongs_to
from launcher.node.ranks import RankWatch
from launcher.runs.agent_log import failed_places, is_closing
from launcher.runs.judge import Ending
from launcher.runs.layout import RunFolder
from launcher.runs.logs import agent_log
from launcher.runs.markers import has_failure, has_result, read_node_ends
from launcher.runs.processes import ProcessId, descendants, end_processes, processes_of_run, wait_until_gone
from launcher.runs.records import Event, NodeEnd, RankPlace, append_record, write_record
from launcher.runs.stopping import ask_to_stop, stop_cause

POLL_S = 0.2
FAILURE_GRACE_S = 20.0
RESULT_GRACE_S = 120.0
RANKS_GONE_GRACE_S = 10.0
TERM_GRACE_S = 5.0
EXIT_GRACE_S = 2.0

Say = Callable[[str], None]


def silent(_text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStart:
    """What is started: argv with nothing left to fill in, and the whole environment. run_dir: as the launch plan
    spells it. stop_grace_s: how long the ranks may take to save and stop. hint: said with it when they are asked to."""

    run: RunFolder
    run_dir: str
    attempt: int
    node: int
    num_ranks: int
    num_nodes: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    stop_grace_s: float
    hint: str = ""


class NodeRun:
    """Starts the program that starts the ranks of a node, follows it, and ends all of it by force where that is due.

    say takes a line for a person now and then. source: who writes its events. look_too: called at every look, to heed
    what only the caller knows of.
    """

    def __init__(self, start: NodeStart, *, source: str, say: Say, look_too: Callable[[], None]) -> None:
        self.start = start
        self.run = start.run
        self.attempt = start.attempt
        self.watch = RankWatch(self._processes, start.num_ranks)
        self.stop_cause: str | None = None
        self.has_failed = False
        self.has_result = False
        self.is_abandoned = False
        self.ended_by = ""
        self.exit_code: int | None = None
        self._source = source
        self._say_to_person = say
        self._look_too = look_too
        self._places: tuple[RankPlace, ...] = ()
        self._deadline = Deadline()
        self._ranks_gone = False
        self._started_at_s = time.time()
        self._oom_kills_before = oom_kills()

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the program that starts the ranks. Raises OSError where it cannot be."""
        log = agent_log(self.run, self.attempt, self.start.node)
        log.parent.mkdir(parents=True)
        with log.open("wb") as output:
            child = subprocess.Popen(
                self.start.argv,
                cwd=self.run.node(self.attempt, self.start.node),
                env=dict(self.start.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.note("start", f"pid {child.pid}")
        return child

    def follow(self, child: subprocess.Popen[bytes]) -> None:
        """Follow it to its end; whatever happens on the way, no process is left."""
        try:
            self._follow(child)
        finally:
            self._leave_nothing(child)
            self.exit_code = child.returncode

    def end_now(self, why: str) -> None:
        """End by force at the next look."""
        self._deadline.set(0.0, why)

    def ask_to_stop(self, cause: str) -> None:
        """Ask all ranks of the attempt to save and stop, unless that was done before."""
        try:
            ask_to_stop(self.run, self.attempt, cause)
        except OSError as error:
            self.stop_cause = cause
            self.end_now(f"the stop file could not be written ({error.strerror})")

    def note(self, stage: str, detail: str = "") -> None:
        """An event for the record; a full disk must not keep anybody from ending the ranks."""
        event = Event(
            time_s=time.time(),
            source=self._source,
            attempt=self.attempt,
            stage=stage,
            detail=detail,
            node=self.start.node,
            host=socket.gethostname(),
        )
        with contextlib.suppress(OSError):
            append_record(self.run.events, event)

    def say(self, text: str) -> None:
        """Tell a person; one who is gone changes nothing."""
        with contextlib.suppress(OSError):
            self._say_to_person(text)

    def agent_text(self) -> str:
        """What the program that starts the ranks has said so far."""
        return agent_log(self.run, self.attempt, self.start.node).read_text(errors="replace")

    def end(self) -> NodeEnd:
        """How the ranks of this node ended; only once they have."""
        before, now = self._oom_kills_before, oom_kills()
        return NodeEnd(
            attempt=self.attempt,
            node_rank=self.start.node,
            host=socket.gethostname(),
            started_at_s=self._started_at_s,
            ended_at_s=time.time(),
            exit_code=self.exit_code,
            deaths=self.watch.deaths(self.agent_text()),
            ended_by=self.ended_by,
            oom_kills=None if before is None or now is None else now - before,
        )

    def ending(self, end: NodeEnd) -> Ending:
        """What was seen of the attempt from this node, once its ranks have ended as `end` says."""
        is_asked = self.stop_cause is not None or self.run.stop_file(self.attempt).exists()
        return Ending(
            is_asked=is_asked,
            forced=self.ended_by if is_asked and not self.has_failed else "",
            is_abandoned=self.is_abandoned,
            deaths=end.deaths,
            agent=self.start.argv[2],
            agent_exit_code=end.exit_code,
        )

    # following

    def _follow(self, child: subprocess.Popen[bytes]) -> None:
        while self._is_going_on(child):
            self.watch.look()
            self._write_places()
            self._look_too()
            self._heed_stop()
            self._heed_markers()
            if self._deadline.has_come:
                self._end_by_force(child, TERM_GRACE_S, self._deadline.why)
                break
            time.sleep(POLL_S)
        self.watch.look()
        self._write_places(failed_places(self.agent_text()))
        self._look_too()

    def _is_going_on(self, child: subprocess.Popen[bytes]) -> bool:
        """A third TERM ends torchrun, but not the ranks, which are saving because of the first."""
        return child.poll() is None or (self.stop_cause is not None and bool(self._processes()))

    def _write_places(self, told: Sequence[RankPlace] = ()) -> None:
        """Which ranks are here, as they come up: their logs are found by it. told: what torchrun says of some."""
        seen = self.watch.places
        ranks = {place.rank for place in seen}
        places = (*seen, *(place for place in told if place.rank not in ranks))
        if places != self._places:
            self._places = places
            with contextlib.suppress(OSError):
                write_record(self.run.node_ranks(self.attempt, self.start.node), self._places)

    def _heed_stop(self) -> None:
        """Whoever wrote the stop file: a person, the scheduler, the agent of another node."""
        if self.stop_cause is not None:
            return
        cause = self.stop_cause = stop_cause(self.run, self.attempt)
        if cause is None:
            return
        self.note("stop asked", cause)
        grace_s = self.start.stop_grace_s
        if self.run.started(self.attempt).exists():
            self.say(f"{cause}: the ranks save at the end of this step and stop{self.start.hint}")
            self._deadline.set(grace_s, f"the ranks had not stopped {grace_s:.0f} s after {cause}")
        else:
            self.say(f"{cause}: no step was taken yet, so there is nothing to save; ending the ranks")
            self.end_now("no step was taken yet")

    def _heed_markers(self) -> None:
        """Whoever has failed, or has done all its work, may not keep the rest waiting for ever."""
        if not self.has_failed and (why := self._failure()):
            self.has_failed = True
            self.note("rank failed", why)
            grace_s = 0.0 if self._is_unstarted() else FAILURE_GRACE_S
            self._deadline.set(grace_s, why)
        if not self.has_result and has_result(self.run, self.attempt):
            self.has_result = True
            self._deadline.set(RESULT_GRACE_S, "the ranks did not exit when their work was done")
        if not self._ranks_gone and self.watch.all_ended:
            self._ranks_gone = True
            self._deadline.set(RANKS_GONE_GRACE_S, "the ranks have ended, and what started them did not")

    def _failure(self) -> str:
        """Why the ranks that are left cannot go on; '' while they can."""
        if has_failure(self.run, self.attempt) or (self.watch.any_ended and is_closing(self.agent_text())):
            return "a rank failed"
        ended = self._ended_nodes()
        if ended and not has_result(self.run, self.attempt):
            return f"the ranks of node {ended[0]} have ended"
        return ""

    def _is_unstarted(self) -> bool:
        """Whether another node could not even start its ranks: then nobody has anything to say or to save."""
        return any(end.is_unstarted for end in read_node_ends(self.run, self.attempt))

    def _ended_nodes(self) -> list[int]:
        others = (node for node in range(self.start.num_nodes) if node != self.start.node)
        return [node for node in others if self.run.node_end(self.attempt, node).exists()]

    # ending

    def _end_by_force(self, child: subprocess.Popen[bytes], term_grace_s: float, why: str) -> None:
        if not self.watch.all_ended:
            self.ended_by = why
        self.note("end by force", why)
        survivors = end_processes(lambda: self._family(child), term_grace_s=term_grace_s)
        if survivors:
            pids = ", ".join(str(process.pid) for process in survivors)
            self.say(f"these processes do not even end when killed (a hung device?): {pids}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=TERM_GRACE_S)

    def _processes(self) -> tuple[ProcessId, ...]:
        return processes_of_run(self.start.run_dir, belongs_to(self.attempt, self.start.node))

    def _family(self, child: subprocess.Popen[bytes]) -> tuple[ProcessId, ...]:
        """All processes: by their environment, and the child's family, whatever it did to its own."""
        by_family = descendants(child.pid) if child.poll() is None else ()  # once reaped, its pid may be another's
        return tuple(sorted({*self._processes(), *by_family}))

    def _leave_nothing(self, child: subprocess.Popen[bytes]) -> None:
        """When the program that started the ranks has ended they have too, unless somebody killed it."""
        if child.poll() is None:
            self._end_by_force(child, TERM_GRACE_S, self._deadline.why)
        elif wait_until_gone(lambda: self._family(child), timeout_s=EXIT_GRACE_S):
            self.is_abandoned = True
            why = self._deadline.why or "the program that started the ranks is gone"
            self._end_by_force(child, FAILURE_GRACE_S, why)
