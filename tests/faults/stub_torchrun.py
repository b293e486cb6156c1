"""Stands in for torchrun where its own three seconds of imports are not the point: same words, logs and manners.

It starts the ranks of one node, gives them what torchrun gives them, passes signals on, ends the others when one fails,
and exits with 1 after a failure or a signal. Nodes are numbered as the agent numbers them, and nobody meets.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

FAILURE = "  rank      : {rank} (local_rank: {local_rank})\n  exitcode  : {code} (pid: {pid})"
CLOSE_S = 30.0
POLL_S = 0.05


def main() -> int:
    words, command = split(sys.argv[1:])
    options = parse(words)
    received: list[int] = []

    def take(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    for name in (options.signals_to_handle or "SIGTERM,SIGINT,SIGHUP,SIGQUIT").split(","):
        signal.signal(signal.Signals[name], take)
    ranks = [start(options, local_rank, command) for local_rank in range(options.nproc_per_node)]
    passed_on, closing_at = 0, 0.0
    while any(rank.poll() is None for rank in ranks):
        for number in received[passed_on:]:
            passed_on += 1
            print(f"Received {number} death signal, shutting down workers", file=sys.stderr, flush=True)
            send(ranks, signal.Signals(number))
        failed = any(rank.poll() not in (None, 0) for rank in ranks)
        if failed and not closing_at:
            closing_at = time.monotonic()
            send(ranks, signal.SIGTERM)
        if closing_at and time.monotonic() > closing_at + CLOSE_S:
            send(ranks, signal.SIGKILL)
        time.sleep(POLL_S)
    node = int(os.environ.get("FITLAUNCH_NODE", "0"))
    for local_rank, rank in enumerate(ranks):
        if rank.returncode:
            number = node * options.nproc_per_node + local_rank
            print(FAILURE.format(rank=number, local_rank=local_rank, code=rank.returncode, pid=rank.pid), flush=True)
    return int(bool(received) or any(rank.returncode for rank in ranks))


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the module with its arguments."""
    at = words.index("-m")
    return words[:at], words[at:]


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--standalone", action="store_true")
    parser.add_argument("--nnodes", type=int)
    parser.add_argument("--nproc-per-node", type=int)
    parser.add_argument("--max-restarts", type=int)
    parser.add_argument("--log-dir", type=Path)
    parser.add_argument("--redirects")
    parser.add_argument("--shutdown-timeout")
    parser.add_argument("--signals-to-handle")
    for name in ("backend", "endpoint", "id", "conf"):
        parser.add_argument(f"--rdzv-{name}")
    parser.add_argument("--local-addr")
    return parser.parse_args(words)


def start(options: argparse.Namespace, local_rank: int, command: list[str]) -> subprocess.Popen[bytes]:
    node = int(os.environ.get("FITLAUNCH_NODE", "0"))
    folder = options.log_dir / "stub" / "attempt_0" / str(local_rank)
    folder.mkdir(parents=True)
    environment = {
        "RANK": str(node * options.nproc_per_node + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(options.nnodes * options.nproc_per_node),
        "LOCAL_WORLD_SIZE": str(options.nproc_per_node),
        "GROUP_RANK": str(node),
    }
    with (folder / "stdout.log").open("wb") as out, (folder / "stderr.log").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def send(ranks: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.poll() is None:
            print(f"Sending process {rank.pid} closing signal {number.name}", file=sys.stderr, flush=True)
            rank.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
