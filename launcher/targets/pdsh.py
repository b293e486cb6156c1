"""DeepSpeed's own launcher over several hosts, by pdsh, and what has to be done around it.

It was seen (DeepSpeed 0.19.8) to hand values of its environment file and words of its command to a shell on the other
side unquoted, to put every variable with a certain beginning on a command line that all can read, to leave the ranks
behind when it is ended, and to exit with 0 over ranks that were killed. So: nothing reaches it that a shell could read;
its environment is ours and not the user's; the ranks watch a lease that the launcher renews; and markers alone say how
the run ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.hostfile import host_name
from launcher.node.fields import NodeFields, fill
from launcher.render.types import LaunchPlan
from launcher.runs.agent_log import is_closing
from launcher.runs.layout import RunFolder
from launcher.runs.logs import agent_log
from launcher.runs.processes import RUN_VARIABLE, descendants, end_processes
from launcher.runs.records import AttemptStart, NodeEnd, RankDeath, write_atomically, write_record
from launcher.runs.tail import last_lines
from launcher.spec import HostSlots
from launcher.targets.lost import Lost, write_lost
from launcher.targets.preflight import Ready
from launcher.targets.ssh import option_words, ssh_environment

LEASE_PERIOD_S = 2.0
TERM_GRACE_S = 2.0
VALUE = re.compile(r"(?!~)(?:[A-Za-z0-9_.,@+/-]|[=:](?!~)|~)*", re.ASCII)
# pdsh 2.31: a host whose ssh could not connect, or lost the connection.
BROKEN = re.compile(r"^pdsh@\S+: (\S+): ssh exited with exit code 255$", re.MULTILINE)
# DeepSpeed 0.19.8, launcher/launch.py; pdsh puts the host before each line.
ENDED = re.compile(r"^(\S+): .*exits with return code = (-?\d+)", re.MULTILINE)


def is_harmless(value: str) -> bool:
    """Whether a shell, and pdsh, take a value for nothing but itself."""
    return VALUE.fullmatch(value) is not None


class Pdsh:
    """DeepSpeed's launcher in one attempt. It runs here; its ranks are on the hosts."""

    def __init__(
        self,
        run: RunFolder,
        launch: LaunchPlan,
        attempt: int,
        hosts: Sequence[HostSlots],
        ready: Ready,
        *,
        num_ranks_per_node: int,
        environment: Mapping[str, str],
    ) -> None:
        self.lost: list[Lost] = []
        self._run = run
        self._launch = launch
        self._attempt = attempt
        self._hosts = hosts
        self._ready = ready
        self._num_ranks_per_node = num_ranks_per_node
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at_s = time.time()
        self._renew_at_s = 0.0

    @property
    def are_over(self) -> bool:
        """Whether DeepSpeed's launcher has ended."""
        return self._child is not None and self._child.poll() is not None

    def start(self) -> None:
        """Start it, its lease and environment written before. Raises OSError where it cannot be."""
        run, attempt = self._run, self._attempt
        self._renew()
        start = AttemptStart(
            attempt=attempt,
            time_s=time.time(),
            head=self._ready.head,
            port=self._ready.port,
            num_nodes=len(self._hosts),
        )
        write_record(run.attempt_start(attempt), start)
        log = agent_log(run, attempt)
        log.parent.mkdir(parents=True)  # DeepSpeed's processes would race for making it
        ranks = self._ranks_environment()
        _write_private(self._environment_file, "".join(f"{name}={value}\n" for name, value in ranks.items()))
        fields = NodeFields(
            node_rank=0, head=self._ready.head, port=self._ready.port, address="", rendezvous=run.root.name
        )
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                fill(self._launch.argv, fields),
                cwd=run.node(attempt, 0),
                env=self._own_environment(ranks),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look(self) -> None:
        """Renew the lease, and take down which hosts are lost."""
        if time.monotonic() >= self._renew_at_s:
            with contextlib.suppress(OSError):
                self._renew()
        for host in BROKEN.findall(self._text()):
            node = self._node_of(host)
            if node is not None and all(lost.node != node for lost in self.lost):
                lost = Lost(node=node, host=self._hosts[node].host, time_s=time.time(), why="its ssh connection broke")
                self.lost.append(lost)
                write_lost(self._run, self._attempt, self._started_at_s, lost)

    def failure(self) -> str:
        """Why the ranks that are left cannot go on, '' while they can."""
        if self.lost:
            return str(self.lost[0])
        return "a rank failed" if is_closing(self._text()) else ""

    def end(self, timeout_s: float) -> None:
        """End what runs here. Its ranks outlive it, and are ended on their hosts."""
        child = self._child
        if child is not None and child.poll() is None:
            end_processes(
                lambda: descendants(child.pid) if child.poll() is None else (),
                term_grace_s=min(TERM_GRACE_S, timeout_s),
            )
            child.kill()
            child.wait(timeout=timeout_s)
        for path in (self._environment_file, self._run.lease(self._attempt)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._write_ends()

    def last_words(self) -> tuple[str, ...]:
        """What DeepSpeed's launcher said last."""
        return last_lines(agent_log(self._run, self._attempt), 15)

    @property
    def _environment_file(self) -> Path:
        return self._run.root / "control" / f"deepspeed-environment-{self._attempt}"

    def _node_of(self, name: str) -> int | None:
        """The node that pdsh calls so: by its host, or user and host."""
        names = [(each.host, host_name(each.host)) for each in self._hosts]
        return next((node for node, known in enumerate(names) if name in known), None)

    def _text(self) -> str:
        try:
            return agent_log(self._run, self._attempt).read_text(errors="replace")
        except OSError:
            return ""

    def _renew(self) -> None:
        self._renew_at_s = time.monotonic() + LEASE_PERIOD_S
        write_atomically(self._run.lease(self._attempt), f"{time.time():.3f}\n")

    def _ranks_environment(self) -> dict[str, str]:
        """What every rank gets, beside what DeepSpeed's launcher sets."""
        environment = {
            **self._launch.env,
            **self._environment,
            "FITLAUNCH_ATTEMPT": str(self._attempt),
            "FITLAUNCH_LEASE": str(self._run.lease(self._attempt)),
            "FITLAUNCH_PLAN_HASH": self._launch.hash,
        }
        num_cores = min(probed.num_cores for probed in self._ready.probed)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // self._num_ranks_per_node)))
        interfaces = {probed.interface for probed in self._ready.probed}
        if len(interfaces) == 1 and None not in interfaces:
            environment.setdefault("GLOO_SOCKET_IFNAME", str(*interfaces))
        unsafe = sorted(name for name, value in environment.items() if not is_harmless(value))
        assert not unsafe, f"values that a shell could read should have been refused: {unsafe}"
        return dict(sorted(environment.items()))

    def _own_environment(self, ranks: Mapping[str, str]) -> dict[str, str]:
        """What DeepSpeed's launcher runs with: what is its ranks', and what ssh needs; nothing else of the user's."""
        return {
            **ssh_environment(os.environ),
            **{name: value for name, value in ranks.items() if name != RUN_VARIABLE},
            "DS_ENV_FILE": str(self._environment_file),
            "PDSH_RCMD_TYPE": "ssh",
            "PDSH_SSH_ARGS_APPEND": " ".join(option_words()),
        }

    def _write_ends(self) -> None:
        """How the ranks of each node ended, as far as DeepSpeed's launcher told: it names a host, not a rank."""
        codes = dict(ENDED.findall(self._text()))
        for node, each in enumerate(self._hosts):
            code = codes.get(each.host, codes.get(host_name(each.host)))
            if code is None or self._run.node_end(self._attempt, node).exists():
                continue
            now_s = time.time()
            is_alone = self._num_ranks_per_node == 1
            end = NodeEnd(
                attempt=self._attempt,
                node_rank=node,
                host=each.host,
                started_at_s=self._started_at_s,
                ended_at_s=now_s,
                exit_code=int(code),
                deaths=(RankDeath(rank=node, seen_at_s=now_s, exit_code=int(code)),) if is_alone else (),
            )
            with contextlib.suppress(OSError):
                write_record(self._run.node_end(self._attempt, node), end)


def _write_private(path: Path, text: str) -> None:
    """Write a file that is this user's alone from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
