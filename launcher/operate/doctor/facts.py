"""What a node can tell of itself."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launcher.host import detect_host
from launcher.node.address import interface_of, node_address
from launcher.operate.doctor.types import NodeReport
from launcher.targets.facts import host_facts

SHM = Path("/dev/shm")  # noqa: S108  it is looked at, not written to


def gather(
    *, node_rank: int, folder: Path, nonce: str, head: str, interface: str | None, paths: Sequence[str], port: int
) -> NodeReport:
    """This node's report. nonce: what the launcher wrote into the folder. head: the first node's name."""
    address, problem = _address(head, interface)
    sees_folder = _read(folder / "nonce") == nonce
    shm_total, shm_free = _space(SHM)
    return NodeReport(
        **asdict(host_facts(detect_host(), paths)),
        node_rank=node_rank,
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        sees_folder=sees_folder,
        can_write=sees_folder and _write(folder / f"seen-{node_rank}"),
        address=address,
        interface=interface_of(address),
        network_problem=problem,
        port=port,
        disk_free_bytes=_space(folder)[1] if sees_folder else None,
        shm_total_bytes=shm_total,
        shm_free_bytes=shm_free,
    )


def _address(head: str, interface: str | None) -> tuple[str, str]:
    try:
        return node_address(head, interface), ""
    except OSError as error:
        return "", str(error)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path) -> bool:
    try:
        path.write_text(socket.gethostname())
    except OSError:
        return False
    return True


def _space(path: Path) -> tuple[int, int]:
    """Bytes in all, and those free for this user."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return 0, 0
    return usage.total, usage.free
