"""The agent of one node of a cluster: it starts the ranks there, follows them, and leaves nothing of them.

What ends them, beside what ends any attempt (launcher.node.run):
- TERM, INT, HUP or USR1 to the agent: a stop file, so that all ranks of all nodes save at the same step. The scheduler
  may have signalled the ranks as well, once or twice; that changes nothing;
- a later attempt of the run was accepted: this one is fenced off, and ends by force;
- the head refused the start, or the launcher that holds this agent is gone: by force.

The agents end in an order, so that none is ended by the scheduler because another one has: each waits for its ranks and
writes how they ended; the head waits for that, judges the attempt, and says that it has; then all of them exit. Where a
launcher holds them, it is the one that judges.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import Interrupted, JobFailed, SubmitError
from launcher.node.address import node_address
from launcher.node.environment import (
    is_of_earlier_attempt,
    rank_environment,
    with_network,
    with_threads,
)
from launcher.node.fields import NodeFields, fill
from launcher.node.head import NODE_LOSS_WAIT_S, Head, Meeting
from launcher.node.inputs import unseen_inputs
from launcher.node.job import scheduler_job
from launcher.node.leash import LauncherGone, Leash
from launcher.node.run import NodeRun, NodeStart
from launcher.node.signals import SCHEDULER_SIGNALS, StopRequests, collect_stop_requests
from launcher.render.types import LaunchPlan
from launcher.runs.attempts import superseded_by
from launcher.runs.frozen import read_launch_plan
from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_markers
from launcher.runs.processes import end_processes, processes_of_run
from launcher.runs.records import NodeEnd, discard_half_written, write_record
from launcher.spec import JobSpec, read_job

HEAD_WAIT_S = NODE_LOSS_WAIT_S + 30.0
FENCE_PERIOD_S = 1.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentArguments:
    """What an agent is told. meeting, rendezvous: where the nodes of the attempt meet, and under which name.
    is_held: a launcher holds this agent's standard input, and follows the run itself."""

    run: RunFolder
    attempt: int
    node: int
    meeting: Meeting
    rendezvous: str
    stop_grace_s: float
    is_held: bool


class Agent:
    """One node in one attempt."""

    def __init__(self, arguments: AgentArguments, requests: StopRequests) -> None:
        self.run = arguments.run
        self.attempt = arguments.attempt
        self.node = arguments.node
        self.arguments = arguments
        self.launch: LaunchPlan = read_launch_plan(self.run)
        self.spec: JobSpec = read_job(self.run.job)
        self.job = scheduler_job(os.environ)
        self.leash = Leash(sys.stdin.buffer) if arguments.is_held else None
        self._requests = requests
        self._head = (
            Head(self.run, self.attempt, self.spec, self.job, keeps_state=not arguments.is_held)
            if self.node == 0
            else None
        )
        self._ranks: NodeRun | None = None
        self._next_look_s = 0.0
        self._must_not_run = ""
        self._has_cleared = False

    def run_to_its_end(self) -> int:
        """Run this node's part of the attempt; returns the exit code."""
        if self._head is not None:
            refused = self._head.accept(self.arguments.meeting)
            if refused is not None:
                _say(f"attempt {self.attempt} is not started: {refused.reason}")
                return refused.exit_code
        start = self._start()
        unseen = unseen_inputs(self.spec, start.env)
        if unseen:
            return self._not_started(f"on {socket.gethostname()} {'; '.join(unseen)}")
        ranks = self._ranks = NodeRun(start, source="node", say=_say, look_too=self._look)
        try:
            child = ranks.launch()
        except OSError as error:
            return self._not_started(f"{error.filename or self.launch.argv[0]}: {error.strerror or error}")
        ranks.follow(child)
        end = ranks.end()
        is_written = self._write_end(end)
        if not (self._must_not_run or self.arguments.is_held):
            if self._head is not None:
                self._head.conclude(end, ranks.ending(end), ranks.note, lambda: self._is_told_to_end(is_written))
            elif is_written:
                self._wait_for_head()
        if self.leash is not None and self.leash.loss():
            return JobFailed.exit_code  # whatever the ranks still managed to write: nobody is left to heed it
        return 0 if self.run.refused(self.attempt).exists() else exit_code(self.run, self.attempt)

    def _start(self) -> NodeStart:
        meeting = self.arguments.meeting
        address = node_address(meeting.head, self.spec.cluster.network_interface)
        fields = NodeFields(
            node_rank=self.node,
            head=meeting.head,
            port=meeting.port,
            address=address,
            rendezvous=self.arguments.rendezvous,
        )
        given = {} if self.leash is None else self.leash.environment
        environment = rank_environment(
            self.launch,
            {**os.environ, **given},
            attempt=self.attempt,
            node=self.node,
            job_id=None if self.job is None else self.job.job_id,
        )
        environment = with_threads(environment, self.launch, self.spec.gpus_per_node)
        return NodeStart(
            run=self.run,
            run_dir=self.launch.run_dir,
            attempt=self.attempt,
            node=self.node,
            num_ranks=self.spec.gpus_per_node,
            num_nodes=self.spec.nodes,
            argv=fill(self.launch.argv, fields),
            env=with_network(environment, address),
            stop_grace_s=self.arguments.stop_grace_s,
        )

    def _look(self) -> None:
        assert self._ranks is not None
        if self._requests.first is not None:
            self._ranks.ask_to_stop(self._requests.first.name)
        if self._must_not_run or time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + FENCE_PERIOD_S
        self._end_earlier_attempts()
        self._must_not_run = self._reason_to_end()
        if self._must_not_run:
            self._ranks.end_now(self._must_not_run)

    def _reason_to_end(self) -> str:
        """Why these ranks must not go on; '' while they may."""
        newer = superseded_by(self.run, self.attempt)
        if newer is not None:
            return f"superseded by attempt {newer}"
        if self.run.refused(self.attempt).exists():
            return self.run.refused(self.attempt).read_text().strip()
        return "" if self.leash is None else self.leash.loss()

    def _end_earlier_attempts(self) -> None:
        """What attempts before this one have left on this node: it holds memory and GPUs, and may not write any more
        from the moment that the head has accepted this one."""
        if self._has_cleared or not self.run.attempt_start(self.attempt).exists():
            return
        self._has_cleared = True
        end_processes(
            lambda: processes_of_run(self.launch.run_dir, is_of_earlier_attempt(self.attempt)), term_grace_s=0.0
        )
        discard_half_written(self.run.root)

    def _not_started(self, text: str) -> int:
        """Say that no rank could be started here; the other nodes see it, and end theirs."""
        _say(text)
        now_s = time.time()
        if self._head is not None:
            self._head.not_started(self.attempt, text, SubmitError.exit_code)
        self._write_end(
            NodeEnd(
                attempt=self.attempt,
                node_rank=self.node,
                host=socket.gethostname(),
                started_at_s=now_s,
                ended_at_s=now_s,
                exit_code=None,
                deaths=(),
                ended_by=text,
            )
        )
        if self._head is not None:
            self._head.let_go()
        elif not self.arguments.is_held:
            self._wait_for_head()
        return SubmitError.exit_code

    def _write_end(self, end: NodeEnd) -> bool:
        try:
            write_record(self.run.node_end(self.attempt, self.node), end)
        except OSError as error:
            _say(f"how this node ended could not be written: {error}")
            return False
        return True

    def _is_told_to_end(self, is_written: bool) -> bool:
        """Where nothing can be written, the other nodes cannot say either how they ended."""
        return not is_written or self._requests.first is not None

    def _wait_for_head(self) -> None:
        """An agent that exits with a failure may cost the others their lives. Told to end only now, it does."""
        was_asked = self._requests.first is not None
        until_s = time.monotonic() + HEAD_WAIT_S
        while not self._head_has_gone() and time.monotonic() < until_s:
            is_asked = not was_asked and self._requests.first is not None
            if is_asked or superseded_by(self.run, self.attempt) is not None:
                return
            time.sleep(POLL_S)

    def _head_has_gone(self) -> bool:
        return self.run.judged(self.attempt).exists() or self.run.refused(self.attempt).exists()


def exit_code(run: RunFolder, attempt: int) -> int:
    """The exit code of an attempt for a scheduler, the same on every node."""
    markers = read_markers(run, attempt)
    if markers.finished:
        return 0
    return Interrupted.exit_code if markers.stopped else JobFailed.exit_code


def run_agent(arguments: AgentArguments) -> int:
    """Run one node's part of an attempt to its end. Raises SubmitError where the plan changed."""
    with collect_stop_requests(SCHEDULER_SIGNALS) as requests:
        try:
            return Agent(arguments, requests).run_to_its_end()
        except LauncherGone as error:
            _say(str(error))
            return SubmitError.exit_code


def run_folder(path: Path) -> RunFolder:
    """The run folder at a path, which need not be spelled as its plan does."""
    return RunFolder(path.absolute())


def _say(text: str) -> None:
    print(f"fitlaunch: {text}", file=sys.stderr, flush=True)  # noqa: T201
