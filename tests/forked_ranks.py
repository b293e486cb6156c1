"""Ranks forked from a process that has imported the libraries already: three seconds instead of ten.

What torchrun would do is done here: a session of their own, the rendezvous variables, all ended when one fails. Tests
of the launcher itself start torchrun and deepspeed; these are for what the ranks do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

# What the libraries read once, when they are imported.
AT_IMPORT = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PRELOADED = ["jobs.train", "jobs.job", "deepspeed", "peft", "bitsandbytes", "transformers.models.llama.modeling_llama"]
POLL_S = 0.02


class ForkedRanks:
    """The ranks of one attempt, with the few methods of subprocess.Popen that tests use."""

    def __init__(self, run_dir: Path, environment: Mapping[str, str], world_size: int, log: Path) -> None:
        arguments = (str(run_dir), dict(environment), world_size, str(log))
        self._process = _server().Process(target=_start_all, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, None while ranks run: 0 when all ended well, otherwise 1."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for all ranks."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("ranks", timeout or 0.0)
        return self._process.exitcode


def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = {name: os.environ.get(name) for name in AT_IMPORT}
    os.environ |= AT_IMPORT
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    return context


def _start_all(run_dir: str, environment: dict[str, str], world_size: int, log: str) -> None:
    """In the forked process: become the leader of a session, fork the ranks, and see them end."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ |= environment | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    ranks = {_fork(run_dir, rank): rank for rank in range(world_size)}
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.pop(pid, None)
        if os.waitstatus_to_exitcode(status) != 0 and not failed:
            failed = True
            _end(ranks)
    sys.stdout.flush()
    os._exit(int(failed))


def _end(ranks: Mapping[int, int], grace_s: float = 10.0) -> None:
    """As torchrun does: TERM, and KILL for those that do not heed it."""
    for pid in ranks:
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + grace_s
    while time.monotonic() < end and any(_runs(pid) for pid in ranks):
        time.sleep(POLL_S)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _fork(run_dir: str, rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    sys.argv = ["jobs.train", run_dir]
    code = 1
    try:
        from jobs.train import main

        main()
        code = 0
    except BaseException as error:  # noqa: BLE001  a rank's end is its exit code
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
