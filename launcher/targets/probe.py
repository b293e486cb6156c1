"""What a host says of itself before anything is started on it. Runs there: python -m launcher.targets.probe RUN_DIR ...

One JSON document on stdout. It asks only what this host alone can know; whether that will do is judged by
launcher.targets.preflight, where the launcher runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.host import Host, detect_host
from launcher.node.address import interface_of, node_address
from launcher.runs.processes import processes_of_run
from launcher.runs.records import write_exclusively
from launcher.spec import to_json
from launcher.targets.facts import HostFacts, host_facts
from launcher.targets.ports import choose_port

# A file server may tell of a new file late.
SHARED_WAIT_S = 5.0
# A GPU on which others hold more than this is in use; a display server and NVML's own share are less.
IN_USE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(HostFacts):
    """What a host said.

    nonce: the text of the file asked for, None where it is not there. address, interface: on the way to the head; the
    head's own way to the others. heads_address: what the head's name means here, '' where nothing. num_left:
    processes of this very run. port: one that is free, where one was asked for. num_gpus_in_use: GPUs on which
    somebody holds memory.
    """

    hostname: str
    nonce: str | None
    can_write: bool
    address: str
    interface: str | None
    own_name_is_loopback: bool
    heads_address: str
    num_gpus_in_use: int
    num_left: int
    port: int | None


def main(words: Sequence[str]) -> None:
    """Answer on stdout."""
    options = _options(words)
    nonce = _read_soon(options.nonce)
    host = detect_host()
    address, interface = _way(options.toward)
    probed = Probed(
        **asdict(host_facts(host, options.path)),
        hostname=host.hostname,
        nonce=nonce,
        can_write=nonce is not None and _answer_beside(options.nonce, options.node_rank),
        address=address,
        interface=interface,
        own_name_is_loopback=_resolve(host.hostname).startswith("127."),
        heads_address=_resolve(options.head),
        num_gpus_in_use=_gpus_in_use(host),
        num_left=len(processes_of_run(options.run_dir)),
        port=choose_port(options.port_seed) if options.port_seed else None,
    )
    sys.stdout.write(to_json(probed) + "\n")


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launcher.targets.probe")
    parser.add_argument("run_dir")
    parser.add_argument("--node-rank", type=int, required=True)
    parser.add_argument("--nonce", type=Path, required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--toward", required=True)
    parser.add_argument("--path", action="append", default=[])
    parser.add_argument("--port-seed", default="")
    return parser.parse_args(words)


def _read_soon(path: Path) -> str | None:
    end = time.monotonic() + SHARED_WAIT_S
    while True:
        try:
            return path.read_text()
        except OSError:
            if not path.parent.parent.is_dir() or time.monotonic() >= end:
                return None
        time.sleep(0.2)


def _answer_beside(nonce: Path, node_rank: int) -> bool:
    """Write what the launcher will look for: a folder may be shared and not be this user's to write to."""
    try:
        return write_exclusively(answer_path(nonce, node_rank), socket.gethostname())
    except OSError:
        return False


def answer_path(nonce: Path, node_rank: int) -> Path:
    """The file by which a node answers a nonce."""
    return nonce.with_name(f"{nonce.name}-{node_rank}")


def _way(toward: str) -> tuple[str, str | None]:
    try:
        address = node_address(toward, None)
    except OSError:
        return "", None
    return address, interface_of(address)


def _resolve(name: str) -> str:
    try:
        return socket.getaddrinfo(name, None, family=socket.AF_INET)[0][4][0].__str__()
    except OSError:
        return ""


def _gpus_in_use(host: Host) -> int:
    """GPUs on which somebody holds memory; 0 where nobody can tell."""
    if not host.num_gpus:
        return 0
    import pynvml

    nvml: Any = pynvml
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        used = [nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used for handle in handles]
        return sum(size > IN_USE_BYTES for size in used)
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    main(sys.argv[1:])
