"""One start of a run on this host, as its launcher follows it: the user's wishes, the screen, and the outcome."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from launcher.node.environment import rank_environment
from launcher.node.run import NodeRun, NodeStart, Say
from launcher.node.signals import StopRequests
from launcher.render.types import LaunchPlan
from launcher.runs.judge import judge
from launcher.runs.layout import RunFolder
from launcher.runs.logs import any_rank_started, log_tail
from launcher.runs.outcome import Observer, Outcome
from launcher.runs.records import AttemptStart, NodeEnd, Status, write_record
from launcher.runs.state import write_state
from launcher.targets.last_state import not_started, write_last_state
from launcher.targets.observed import Observed


class Attempt:
    """Starts the ranks of this host, follows them, and says how they ended.

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
        start = NodeStart(
            run=run,
            run_dir=launch.run_dir,
            attempt=number,
            node=0,
            num_ranks=launch.job.gpus_per_node,
            num_nodes=1,
            argv=launch.argv,
            env=rank_environment(launch, os.environ, attempt=number),
            stop_grace_s=stop_grace_s,
            hint="; once more ends them at once",
        )
        self._ranks = NodeRun(start, source="launcher", say=say, look_too=self._look)
        self._observed = Observed(run, observer, self._ranks.note)

    def run_to_its_end(self) -> Outcome:
        """Start, follow and end; whatever happens on the way, no process of the run is left."""
        try:
            self._write_start()
            child = self._ranks.launch()
        except OSError as error:
            text = f"{error.filename or self.launch.argv[0]}: {error.strerror or error}"
            raise not_started(self.run, self.number, text) from error
        self._ranks.follow(child)
        return self._conclude(self._ranks.end())

    def _write_start(self) -> None:
        start = AttemptStart(attempt=self.number, time_s=time.time(), head=socket.gethostname(), port=0, num_nodes=1)
        write_record(self.run.attempt_start(self.number), start)
        write_state(self.run, Status.RUNNING, attempt=self.number)

    def _look(self) -> None:
        self._observed.look()
        if self._requests.first is not None:
            self._ranks.ask_to_stop(self._requests.first.name)
        if self._requests.is_forced:
            self._ranks.end_now("the user asked again")

    def _conclude(self, end: NodeEnd) -> Outcome:
        ranks = self._ranks
        ending = ranks.ending(end)
        if not (ending.is_asked or ranks.has_result or any_rank_started(self.run, self.number)):
            said = "\n".join(log_tail(self.run, self.number, None))
            raise not_started(self.run, self.number, said or "no rank was started")
        with contextlib.suppress(OSError):
            write_record(self.run.node_end(self.number, 0), end)
        outcome = judge(self.run, self.number, ending)
        ranks.note("end", outcome.status.value)
        write_last_state(self.run, outcome, ranks.say)
        return outcome
