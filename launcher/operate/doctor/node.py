"""What runs on each node: python -m launcher.operate.doctor.node FOLDER --node-rank N --num-nodes N ...

It says what it finds, tries to reach every other node, and takes part in an all-reduce with those that are fit to. The
nodes wait for each other in the shared folder, and never for long.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from launcher.node.environment import with_network
from launcher.node.waiting import wait_until
from launcher.operate.doctor.facts import gather
from launcher.operate.doctor.judge import unfit_nodes
from launcher.operate.doctor.output import say
from launcher.operate.doctor.types import Meeting, NodeReport, RanksEnd, Reached
from launcher.render.environment import inherited_environment
from launcher.runs.records import read_record, write_record
from launcher.runs.tail import last_lines

T = TypeVar("T")

# How long a node waits for the reports of the others after its own: they start at the same time.
GATHER_S = 20.0
CONNECT_S = 5.0
# How long the nodes stay reachable, and wait for what each of them could reach.
REACH_S = 15.0
# Imports of torch on every rank, where they meet, and the collective's own time limit.
ALL_REDUCE_S = 150.0
POLL_S = 0.1
TAIL_LINES = 8
LOOK_BACK_LINES = 400
# Of a traceback the line with the error; torchrun's own summary after it says only that there was one.
TELLING = re.compile(r"^(\[rank\d+\]: )?[\w.]+(Error|Exception)\b(?<!ChildFailedError)")


def main(words: Sequence[str]) -> None:
    """Say everything on stdout. The exit code is 0 whatever was found: who is wrong is judged by the launcher."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # and to end the ranks first
    options = _options(words)
    with socket.create_server(("", 0), backlog=256) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        report = gather(
            node_rank=options.node_rank,
            folder=options.folder,
            nonce=options.nonce,
            head=options.head,
            interface=options.interface,
            paths=options.path,
            port=server.getsockname()[1],
        )
        say(report)
        if not report.can_write:
            return
        write_record(options.folder / f"report-{options.node_rank}.json", report)
        reports = _gather(options.folder, "report", options.num_nodes, NodeReport, GATHER_S)
        reached = Reached(node_rank=options.node_rank, unreachable=_unreachable(report, reports))
        say(reached)
        write_record(options.folder / f"reached-{options.node_rank}.json", reached)
        every = _gather(options.folder, "reached", len(reports), Reached, REACH_S, among=tuple(reports))
    if options.all_reduce and options.ranks:
        _take_part(options, report, reports, every)


def _options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launcher.operate.doctor.node")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--node-rank", type=int, default=int(os.environ.get("SLURM_PROCID", "0")))
    parser.add_argument("--num-nodes", type=int, required=True)
    parser.add_argument("--nonce", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--interface", default=None)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--path", action="append", default=[])
    parser.add_argument("--all-reduce", action="store_true")
    return parser.parse_args(words)


def _accept(server: socket.socket) -> None:
    """Let the others find out that they reach this node."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.close()


def _gather(
    folder: Path, name: str, count: int, kind: type[T], timeout_s: float, *, among: Sequence[int] | None = None
) -> dict[int, T]:
    """The records of all nodes, or of those that left one in time."""
    wanted = tuple(range(count)) if among is None else among

    def read() -> dict[int, T]:
        records = ((node, read_record(folder / f"{name}-{node}.json", kind)) for node in wanted)
        return {node: record for node, record in records if record is not None}

    wait_until(lambda: len(read()) == len(wanted), timeout_s=timeout_s, poll_s=POLL_S)
    return read()


def _unreachable(own: NodeReport, reports: dict[int, NodeReport]) -> tuple[int, ...]:
    """The nodes that take no connection from here at the address that they gave."""
    failed = []
    for node, other in reports.items():
        if node == own.node_rank or not other.address:
            continue
        source = (own.address, 0) if own.address else None
        try:
            socket.create_connection((other.address, other.port), timeout=CONNECT_S, source_address=source).close()
        except OSError:
            failed.append(node)
    return tuple(failed)


# The all-reduce


def _take_part(
    options: argparse.Namespace, own: NodeReport, reports: dict[int, NodeReport], reached: dict[int, Reached]
) -> None:
    """The first node that is fit says who takes part and where; whoever is among them does."""
    path = options.folder / "meeting.json"
    unfit = unfit_nodes(reports, reached)
    fit = tuple(node for node in sorted(reports) if node not in unfit)
    if fit and fit[0] == own.node_rank:
        write_record(path, Meeting(nodes=fit, address=own.address, port=_free_port()))
    wait_until(path.exists, timeout_s=REACH_S, poll_s=POLL_S)
    meeting = read_record(path, Meeting)
    if meeting is not None and own.node_rank in meeting.nodes:
        say(_reduce(options, own, meeting))


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _reduce(options: argparse.Namespace, own: NodeReport, meeting: Meeting) -> RanksEnd:
    environment = with_network(inherited_environment(os.environ), own.address)
    if options.interface is not None:
        environment |= {"GLOO_SOCKET_IFNAME": options.interface, "NCCL_SOCKET_IFNAME": options.interface}
    log = options.folder / f"all-reduce-{own.node_rank}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            _torchrun(options, own, meeting),
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            exit_code: int | None = process.wait(timeout=ALL_REDUCE_S)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            _end(process)
    told = (line for line in last_lines(log, LOOK_BACK_LINES) if TELLING.search(line))
    tail = () if exit_code == 0 else tuple(told)[-TAIL_LINES:]
    return RanksEnd(node_rank=own.node_rank, exit_code=exit_code, tail=tail)


def _end(process: subprocess.Popen[bytes]) -> None:
    """torchrun ends its ranks when it is told to; they are in sessions of their own, and have a time limit besides."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=CONNECT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _torchrun(options: argparse.Namespace, own: NodeReport, meeting: Meeting) -> tuple[str, ...]:
    is_host = own.node_rank == meeting.nodes[0]
    return (
        *(sys.executable, "-m", "torch.distributed.run"),
        *(f"--nnodes={len(meeting.nodes)}", f"--nproc-per-node={options.ranks}", "--max-restarts=0"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={meeting.address}:{meeting.port}"),
        *(f"--rdzv-id={options.nonce}", f"--rdzv-conf=is_host={int(is_host)},join_timeout=60"),
        *(f"--local-addr={own.address}", "-m", "jobs.allreduce", options.device),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
