"""The commands that make a namespace a head or a node, in the order in which its process 1 runs them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from slurm.bed.files import GPU_DEVICES
from slurm.bed.settings import BRIDGE, HEAD, HEAD_ADDRESS, BedSettings, Node

Steps = tuple[tuple[str, ...], ...]
NULL_DEVICE = ("c", "1", "3")  # the numbers of /dev/null: a fake GPU does nothing


def _tmpfs(path: str, mode: str = "755") -> tuple[str, ...]:
    return ("mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", path)


def head_steps(settings: BedSettings, *, etc: Path) -> Steps:
    """The head: controller and login node. Its mounts propagate to the nodes; nothing of it reaches the host.

    It gets a copy of /etc, so that no file and no mount point need be made in the host's.
    """
    gpus = [f"{GPU_DEVICES}/nvidia{number}" for number in range(settings.num_gpus_per_node)]
    own_keys = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"
    return (
        ("mount", "--make-rshared", "/"),
        ("hostname", HEAD),
        _tmpfs("/run"),
        _tmpfs("/dev/shm", "1777"),
        ("mkdir", "-p", "/run/lock", "/run/sshd", "/run/munge", "/run/slurmctld", "/run/etc"),
        ("cp", "-a", "/etc/.", "/run/etc"),
        ("mount", "--bind", "/run/etc", "/etc"),
        ("mkdir", "-p", "/etc/slurm", "/etc/ssh", "/etc/munge"),
        _tmpfs("/etc/slurm"),
        _tmpfs("/etc/ssh"),
        _tmpfs("/etc/munge", "700"),
        ("cp", "-a", f"{etc}/.", "/etc"),
        *((_tmpfs(str(own_keys), "700"),) if own_keys.is_dir() else ()),
        ("mkdir", GPU_DEVICES),
        *(("mknod", "-m", "666", gpu, *NULL_DEVICE) for gpu in gpus),
        ("ip", "link", "set", "lo", "up"),
        ("ip", "link", "add", BRIDGE, "type", "bridge"),
        ("ip", "addr", "add", f"{HEAD_ADDRESS}/24", "dev", BRIDGE),
        ("ip", "link", "set", BRIDGE, "up"),
        ("munged", "--force", "--key-file=/etc/munge/munge.key", "--log-file=/run/munge/munged.log"),
    )


def node_steps(node: Node, *, hosts: Path) -> Steps:
    """A compute node: its own /run but for the socket of munge, its own /dev/shm, its own /etc/hosts."""
    own_run = f"/run/{node.name}"
    return (
        ("hostname", node.name),
        ("mkdir", "-p", own_run),
        _tmpfs(own_run),
        ("mkdir", f"{own_run}/lock", f"{own_run}/sshd", f"{own_run}/slurmd", f"{own_run}/munge"),
        ("mount", "--bind", "/run/munge", f"{own_run}/munge"),
        ("mount", "--rbind", own_run, "/run"),
        _tmpfs("/dev/shm", "1777"),
        ("mount", "--bind", str(hosts), "/etc/hosts"),
        ("ip", "link", "set", "lo", "up"),
    )
