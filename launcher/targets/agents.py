"""The node agents of a run on several hosts: one for each, started by ssh, and held by a pipe.

The pipe is the agent's stdin. Its first line is a JSON object of environment variables: secrets go this way, and so
are never on a disk or on a command line. After that a newline every few seconds says that the launcher is there; when
the pipe ends, or is silent for long, the agent ends its ranks by force, however the launcher came to its own end.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.runs.layout import RunFolder
from launcher.runs.tail import last_lines
from launcher.spec import HostSlots
from launcher.targets.lost import Lost, write_lost
from launcher.targets.preflight import Ready
from launcher.targets.ssh import ALIVE_MISSED, ALIVE_PERIOD_S, EXIT_SSH, kill_session, ssh_argv, ssh_environment

BEAT_S = 5.0
# A file server may tell of a file late.
END_WAIT_S = 2.0
POLL_S = 0.1


@dataclass(slots=True)
class _Agent:
    """One agent, and the ssh that leads to it."""

    node: int
    host: str
    log: Path
    process: subprocess.Popen[bytes]
    is_over: bool = field(default=False)


class Agents:
    """The agents of all nodes in one attempt. environment: what each of them is given through its pipe."""

    def __init__(
        self,
        run: RunFolder,
        attempt: int,
        hosts: Sequence[HostSlots],
        ready: Ready,
        *,
        python: str,
        stop_grace_s: float,
        environment: Mapping[str, str],
    ) -> None:
        self.lost: list[Lost] = []
        self._run = run
        self._attempt = attempt
        self._hosts = hosts
        self._ready = ready
        self._python = python
        self._stop_grace_s = stop_grace_s
        self._first_line = json.dumps(dict(environment)).encode() + b"\n"
        self._agents: list[_Agent] = []
        self._started_at_s = time.time()
        self._is_ending = threading.Event()

    @property
    def are_over(self) -> bool:
        """Whether no agent is left to wait for."""
        return all(agent.is_over for agent in self._agents)

    def start(self) -> None:
        """Start all agents at the same time. Raises OSError where ssh cannot be."""
        for node, host in enumerate(self._hosts):
            log = self._run.attempt(self._attempt) / f"ssh-{node}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    ssh_argv(host.host, self._words(node)),
                    env=ssh_environment(os.environ),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    bufsize=0,
                )
            self._agents.append(_Agent(node=node, host=host.host, log=log, process=process))
            assert process.stdin is not None
            os.set_blocking(process.stdin.fileno(), False)
            _write(process, self._first_line)
        # A thread of its own: a file server that keeps the launcher waiting is no reason to end the ranks.
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def look(self) -> None:
        """Take down who has ended."""
        for agent in self._agents:
            if not agent.is_over and agent.process.poll() is not None:
                agent.is_over = True
                self._judge(agent)

    def failure(self) -> str:
        """Why the nodes that are left cannot go on, '' while they can."""
        return str(self.lost[0]) if self.lost else ""

    def end(self, timeout_s: float) -> None:
        """End the pipes, and with them the ranks; who is not gone in time is no longer waited for."""
        self._is_ending.set()
        for agent in self._agents:
            _close(agent.process)
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and any(agent.process.poll() is None for agent in self._agents):
            time.sleep(POLL_S)
        for agent in self._agents:
            kill_session(agent.process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.process.wait(timeout=POLL_S * 10)

    def last_words(self) -> tuple[str, ...]:
        """What ssh and the agents said last, for a person."""
        return tuple(f"{agent.host}: {line}" for agent in self._agents for line in last_lines(agent.log, 5))

    def _beat(self) -> None:
        while not self._is_ending.wait(BEAT_S):
            for agent in self._agents:
                _write(agent.process, b"\n")

    def _words(self, node: int) -> tuple[str, ...]:
        return (
            *(self._python, "-P", "-m", "launcher.node", str(self._run.root), str(self._attempt)),
            *("--node-rank", str(node), "--head", self._ready.head, "--port", str(self._ready.port)),
            *("--rendezvous", f"{self._run.root.name}-{self._attempt}"),
            *("--stop-grace", f"{self._stop_grace_s:g}", "--stdin"),
        )

    def _judge(self, agent: _Agent) -> None:
        """An agent that ends has said how its ranks did. Where it has not, it is lost, and its host with it."""
        end_file = self._run.node_end(self._attempt, agent.node)
        end = time.monotonic() + END_WAIT_S
        while not end_file.exists() and time.monotonic() < end:
            time.sleep(POLL_S)
        if end_file.exists():
            return
        words = last_lines(agent.log, 1)
        why = words[0] if words else _exit_words(agent.process.returncode)
        lost = Lost(node=agent.node, host=agent.host, time_s=time.time(), why=why)
        self.lost.append(lost)
        write_lost(self._run, self._attempt, self._started_at_s, lost)


def _exit_words(exit_code: int | None) -> str:
    """ssh says nothing of a host that is silent; it only ends."""
    if exit_code == EXIT_SSH:
        return f"nothing was heard of it for {ALIVE_PERIOD_S * ALIVE_MISSED} s"
    return f"ssh ended with exit code {exit_code}"


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Write to a pipe whose reader may be slow, or gone: that shows elsewhere."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write(data)


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
