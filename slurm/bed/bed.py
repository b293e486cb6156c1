"""A bed: bring it up, run commands in it, break it, mend it, take it down."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from slurm.bed import files
from slurm.bed.boot import Steps, head_steps, node_steps
from slurm.bed.commands import Argv, clean_environment, inside, run
from slurm.bed.errors import BedError
from slurm.bed.needs import require_what_it_needs
from slurm.bed.processes import (
    INIT,
    PROC,
    command_of,
    find_init,
    hold_namespaces,
    is_own,
    members_of,
    name_of,
    namespaces_of,
    pid_namespace,
    send,
    wait_until,
)
from slurm.bed.settings import BRIDGE, HEAD, BedSettings, Node

COMMAND_TIMEOUT_S = 60.0
BOOT_TIMEOUT_S = 30.0
REGISTER_TIMEOUT_S = 60.0
DOWN_TIMEOUT_S = 20.0
NEW_NAMESPACES = ("--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
HIDDEN_IN_A_BED = (Path("/run"), Path("/dev"), Path("/proc"), Path("/etc"))


class Bed:
    """A cluster of the settings, with all its files below one folder that must not be there yet.

    Whoever knows the folder can use the bed: `Bed.at(folder)`. With tied it ends with the process that brought it up.
    """

    def __init__(self, folder: Path, settings: BedSettings | None = None, *, tied: bool = False) -> None:
        self.folder = folder.resolve()
        self.settings = settings or BedSettings()
        self.tied = tied
        self._parent: subprocess.Popen[bytes] | None = None

    @classmethod
    def at(cls, folder: Path, *, must_be_up: bool = True) -> Bed:
        """The bed in this folder."""
        try:
            fields = json.loads((folder / "settings.json").read_text())
        except OSError:
            raise BedError(f"no bed is in {folder}: bring one up first") from None
        bed = cls(folder, BedSettings(**fields | {"slurm_conf": tuple(fields["slurm_conf"])}))
        if must_be_up:
            bed.pid_of(HEAD)
        return bed

    # --- up and down

    def up(self) -> None:
        """Start every daemon and wait until every node is idle. On failure nothing stays."""
        require_what_it_needs()
        for hidden in HIDDEN_IN_A_BED:
            if self.folder.is_relative_to(hidden):
                raise BedError(f"{self.folder} is below {hidden}, which a bed has of its own: choose another folder")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise BedError(f"{self.folder} is not empty: take the bed in it down, or choose another folder")
        self._write_files()
        try:
            self._start_head()
            self.start_controller()
            for node in self.settings.nodes:
                self.boot(node.name)
            self.wait_until_idle()
        except BaseException:
            self.down(keep_files=True)
            raise

    def down(self, *, keep_files: bool = False) -> None:
        """End everything; calling it again does no harm. Its files go too unless they are kept."""
        with self.hold_namespaces() as namespaces:
            head = find_init(self._steps(HEAD))
            if head is not None:
                send(head, signal.SIGKILL)
            gone = wait_until(lambda: not members_of(namespaces), timeout_s=DOWN_TIMEOUT_S)
            left = members_of(namespaces)
        if self._parent is not None:
            self._parent.wait(timeout=DOWN_TIMEOUT_S)
            if self._parent.stdin:
                self._parent.stdin.close()
            self._parent = None
        if not gone:
            raise BedError(f"processes of the bed do not end: {left}")
        if not keep_files:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def hold_namespaces(self) -> Iterator[frozenset[str]]:
        """The namespaces that are this bed's own, whose numbers go to no others meanwhile."""
        inits = [find_init(self._steps(name)) for name in (HEAD, *(node.name for node in self.settings.nodes))]
        with hold_namespaces(pid for pid in inits if pid is not None) as namespaces:
            yield namespaces - namespaces_of(os.getpid())

    # --- commands

    def login(
        self,
        argv: Argv,
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        cwd: Path | None = None,
        text_in: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, which is the controller's host. On a timeout it is killed."""
        return self.on(HEAD, argv, env=env, timeout_s=timeout_s, cwd=cwd, text_in=text_in)

    def on(
        self,
        host: str,
        argv: Argv,
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        cwd: Path | None = None,
        text_in: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node."""
        return run(self.command(host, argv, cwd=cwd), timeout_s=timeout_s, env=env, text_in=text_in)

    def command(self, host: str, argv: Argv, *, cwd: Path | None = None) -> Argv:
        """The command that runs another one on a host, for who wants to start it otherwise."""
        return inside(self.pid_of(host), argv, cwd=cwd)

    def must(self, host: str, argv: Argv, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """What a command prints that has to succeed."""
        done = self.on(host, argv, timeout_s=timeout_s)
        if done.returncode:
            raise BedError(f"{' '.join(argv)} on {host}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    # --- looking at it

    def node(self, name: str) -> Node:
        """The node of that name."""
        for node in self.settings.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.settings.nodes)
        raise BedError(f"{name} is no node of this bed: its nodes are {names}")

    def pid_of(self, host: str) -> int:
        """Process 1 of a host, as it is numbered outside."""
        if host != HEAD:
            self.node(host)
        pid = find_init(self._steps(host))
        if pid is None:
            raise BedError(f"no bed is up in {self.folder}" if host == HEAD else f"{host} is off: boot it first")
        return pid

    def is_on(self, host: str) -> bool:
        """Whether a host has power."""
        return find_init(self._steps(host)) is not None

    def path_inside(self, host: str, path: Path) -> Path:
        """A path as that host sees it, where a mount makes it differ from what is seen outside."""
        return PROC / str(self.pid_of(host)) / "root" / path.relative_to("/")

    def processes(self, host: str) -> tuple[int, ...]:
        """The processes on a host, as they are numbered outside."""
        return members_of(pid_namespace(self.pid_of(host)))

    def strangers(self) -> tuple[str, ...]:
        """The processes in the bed that are not its own daemons: what jobs and commands have left running."""
        with self.hold_namespaces() as namespaces:
            return tuple(f"{pid} {' '.join(command_of(pid))}" for pid in members_of(namespaces) if not is_own(pid))

    def idle_nodes(self) -> frozenset[str]:
        """The nodes that Slurm would give to a job."""
        done = self.login(("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"), timeout_s=20)
        return frozenset(done.stdout.split()) if done.returncode == 0 else frozenset()

    def wait_until_idle(self, *, timeout_s: float = REGISTER_TIMEOUT_S) -> None:
        """Wait until every node is up and free."""
        every = {node.name for node in self.settings.nodes}
        if not wait_until(lambda: self.idle_nodes() >= every, timeout_s=timeout_s, poll_s=0.05):
            state = self.login(("sinfo", "--Node", "--long"), timeout_s=20)
            raise BedError(f"not every node is idle after {timeout_s:.0f} s:\n{state.stdout}{state.stderr}")

    # --- faults of a node, and their ends

    def boot(self, name: str) -> None:
        """Give a node power: its namespaces, its cable, sshd and slurmd."""
        node = self.node(name)
        if self.is_on(name):
            raise BedError(f"{name} is on already")
        self._start_node(node)
        self._plug_in(node)
        self.must(name, ("/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config", "-E", str(self._log(f"sshd-{name}"))))
        self.start_slurmd(name)

    def power_off(self, name: str) -> None:
        """Every process of a node is gone at once, with its network and its memory."""
        pid = self.pid_of(self.node(name).name)
        with hold_namespaces([pid]) as namespaces:
            own = namespaces - namespaces_of(self.pid_of(HEAD))
            send(pid, signal.SIGKILL)
            if not wait_until(lambda: not members_of(own), timeout_s=DOWN_TIMEOUT_S):
                raise BedError(f"processes of {name} do not end: {members_of(own)}")

    def reboot(self, name: str) -> None:
        """Power off, then on."""
        self.power_off(name)
        self.boot(name)

    def cut(self, name: str) -> None:
        """Pull a node's cable: its processes go on, and nobody reaches them."""
        self.must(HEAD, ("ip", "link", "set", self.node(name).link, "down"))

    def mend(self, name: str) -> None:
        """Plug the cable in again."""
        self.must(HEAD, ("ip", "link", "set", self.node(name).link, "up"))

    def kill_slurmd(self, name: str) -> None:
        """End a node's slurmd alone, by force: its steps go on."""
        self._end_daemon(self.node(name).name, "slurmd", signal.SIGKILL)

    def start_slurmd(self, name: str) -> None:
        """Start a node's slurmd."""
        self.must(self.node(name).name, ("slurmd", "-L", str(self._log(f"slurmd-{name}"))))

    # --- faults of the controller, and their ends

    def hang_controller(self) -> None:
        """The controller takes connections and answers none."""
        for pid in self._daemons(HEAD, "slurmctld"):
            send(pid, signal.SIGSTOP)

    def wake_controller(self) -> None:
        """End the hang."""
        for pid in self._daemons(HEAD, "slurmctld"):
            send(pid, signal.SIGCONT)

    def stop_controller(self) -> None:
        """End the controller; it saves its state first. By force it would lose the jobs of the last seconds."""
        self._end_daemon(HEAD, "slurmctld", signal.SIGTERM)

    def start_controller(self) -> None:
        """Start the controller with the state that it has."""
        self.must(HEAD, ("slurmctld", "-L", str(self._log("slurmctld"))))

    # --- faults of disks

    def small_disk(self, folder: Path, size_bytes: int) -> None:
        """Mount a disk of that size over a folder, the same one on every host; it fills up soon."""
        folder.mkdir(parents=True, exist_ok=True)
        self.must(HEAD, ("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)))

    def own_disk(self, name: str, folder: Path) -> None:
        """Mount an empty disk over a folder on one node, which then does not share it with the others."""
        folder.mkdir(parents=True, exist_ok=True)
        self.must(name, ("mount", "-t", "tmpfs", "tmpfs", str(folder)))

    def remove_disk(self, host: str, folder: Path) -> None:
        """Unmount a disk; what is on it is lost."""
        self.must(host, ("umount", "--lazy", str(folder)))

    # --- its parts

    def _steps(self, host: str) -> Path:
        return self.folder / "boot" / f"{host}.json"

    def _log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    def _write_files(self) -> None:
        etc = self.folder / "etc"
        for folder in (etc / "slurm", etc / "ssh", etc / "munge", *(self.folder / name for name in ("boot", "log"))):
            folder.mkdir(parents=True)
        self.folder.chmod(0o755)  # /etc becomes as etc is: others than root read it
        key, host_key = etc / "ssh" / "id_ed25519", etc / "ssh" / "ssh_host_ed25519_key"
        for path in (key, host_key):
            made = run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)), timeout_s=COMMAND_TIMEOUT_S)
            if made.returncode:
                raise BedError(f"ssh-keygen: {made.stderr.strip()}")
        public = key.with_suffix(".pub").read_text()
        host_public = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        texts = {
            etc / "hosts": files.hosts(self.settings),
            etc / "slurm" / "slurm.conf": files.slurm_conf(self.settings),
            etc / "slurm" / "gres.conf": files.gres_conf(self.settings),
            etc / "ssh" / "sshd_config": files.SSHD_CONFIG,
            etc / "ssh" / "ssh_config": files.SSH_CONFIG,
            etc / "ssh" / "authorized_keys": public,
            etc / "ssh" / "ssh_known_hosts": f"* {host_public}\n",
            self._steps(HEAD): _as_json(head_steps(self.settings, etc=etc)),
            self.folder / "settings.json": json.dumps(asdict(self.settings)),
        }
        for node in self.settings.nodes:
            own_hosts = self.folder / "boot" / f"{node.name}.hosts"
            texts[own_hosts] = files.hosts(self.settings, node)
            texts[self._steps(node.name)] = _as_json(node_steps(node, hosts=own_hosts))
        for path, text in texts.items():
            path.write_text(text)
        munge_key = etc / "munge" / "munge.key"
        munge_key.touch(mode=0o400)
        munge_key.write_bytes(os.urandom(1024))

    def _start_head(self) -> None:
        with self._log(HEAD).open("wb") as log:
            self._parent = subprocess.Popen(
                ("unshare", "--mount", *NEW_NAMESPACES, *self._init(HEAD), *(("--tied",) if self.tied else ())),
                env=clean_environment(),
                stdin=subprocess.PIPE if self.tied else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_for_boot(HEAD)

    def _start_node(self, node: Node) -> None:
        self._ready(node.name).unlink(missing_ok=True)
        new = ("unshare", "--mount", "--propagation=slave", *NEW_NAMESPACES, *self._init(node.name))
        with self._log(node.name).open("ab") as log:
            subprocess.run(
                inside(self.pid_of(HEAD), ("setsid", "--fork", *new)),
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=COMMAND_TIMEOUT_S,
                check=True,
            )
        self._wait_for_boot(node.name)

    def _init(self, host: str) -> Argv:
        return (sys.executable, "-I", "-S", str(INIT), str(self._steps(host)))

    def _ready(self, host: str) -> Path:
        return self._steps(host).with_suffix(".ready")

    def _wait_for_boot(self, host: str) -> None:
        if not wait_until(self._ready(host).exists, timeout_s=BOOT_TIMEOUT_S):
            raise BedError(f"{host} did not start:\n{self._log(host).read_text()}")

    def _plug_in(self, node: Node) -> None:
        """The node's end is made in its own network; only the outside has a number for both."""
        head, pid = self.pid_of(HEAD), self.pid_of(node.name)
        old = PROC / str(head) / "root/sys/class/net"
        wait_until(lambda: not (old / node.link).exists(), timeout_s=DOWN_TIMEOUT_S)
        add = ("ip", "link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        for command in (
            inside(head, add, kinds=("--net",)),
            inside(head, ("ip", "link", "set", node.link, "master", BRIDGE, "up"), kinds=("--net",)),
            inside(pid, ("ip", "addr", "add", f"{node.address}/24", "dev", "eth0"), kinds=("--net",)),
            inside(pid, ("ip", "link", "set", "eth0", "up"), kinds=("--net",)),
        ):
            done = run(command, timeout_s=COMMAND_TIMEOUT_S)
            if done.returncode:
                raise BedError(f"{' '.join(command)}: {done.stderr.strip()}")

    def _daemons(self, host: str, program: str) -> tuple[int, ...]:
        return tuple(pid for pid in self.processes(host) if name_of(pid) == program)

    def _end_daemon(self, host: str, program: str, number: signal.Signals) -> None:
        pids = self._daemons(host, program)
        if not pids:
            raise BedError(f"{program} does not run on {host}")
        for pid in pids:
            send(pid, number)
        if not wait_until(lambda: not self._daemons(host, program), timeout_s=DOWN_TIMEOUT_S):
            raise BedError(f"{program} on {host} does not end")


def _as_json(steps: Steps) -> str:
    return json.dumps(steps, indent=0)
