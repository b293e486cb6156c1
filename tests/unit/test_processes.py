"""Processes by pid and start time, found by the environment they were started with, and ended for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.errors import SubmitError
from launcher.node.signals import SAME_REQUEST_S, collect_stop_requests
from launcher.runs.lock import hold_lock
from launcher.runs.processes import (
    ProcessId,
    end_processes,
    is_alive,
    parse_stat,
    processes_of_run,
    read_environment,
    read_stat,
    send_signal,
    this_process,
    wait_until_gone,
)
from launcher.targets.ports import FIRST_PORT, LAST_PORT, choose_port, port_is_free

STAT = "77 (a) (b c) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 " + "0 " * 29 + "9 0\n"
# ignores TERM, and has a child in a session of its own that ignores it too
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" not in sys.argv:
    subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1], "child"], start_new_session=True)
print("ready", flush=True)
time.sleep(60)
"""


def start(run_dir: str, code: str = "print('ready', flush=True); import time; time.sleep(60)") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, code],
        env={**os.environ, "FITLAUNCH_RUN": run_dir},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_stat_of_a_process_with_an_odd_name() -> None:
    running = parse_stat(STAT)
    assert (running.state, running.start_ticks, running.exit_code) == ("S", 4242, None)
    zombie = parse_stat(STAT.replace(") S ", ") Z "))
    assert (zombie.is_zombie, zombie.exit_code) == (True, -9)


def test_this_process() -> None:
    me = this_process()
    assert is_alive(me)
    assert str(me) == f"{os.getpid()}:{me.start_ticks}"
    assert not is_alive(ProcessId(pid=me.pid, start_ticks=me.start_ticks + 1))
    assert read_stat(2**22 + 1) is None
    assert read_environment(2**22 + 1) == {}


def test_the_exit_code_of_a_zombie() -> None:
    process = start("/none")
    process.kill()
    deadline_s = time.monotonic() + 10
    while (stat := read_stat(process.pid)) is None or not stat.is_zombie:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert stat.exit_code == -9
    assert not is_alive(ProcessId(pid=process.pid, start_ticks=stat.start_ticks))
    assert process.wait() == -9


def test_a_signal_reaches_no_other_process_with_the_same_pid() -> None:
    process = start("/none")
    stat = read_stat(process.pid)
    assert stat is not None
    send_signal(ProcessId(pid=process.pid, start_ticks=stat.start_ticks - 1), signal.SIGKILL)
    time.sleep(0.2)
    assert process.poll() is None
    send_signal(ProcessId(pid=process.pid, start_ticks=stat.start_ticks), signal.SIGKILL)
    assert process.wait(timeout=10) == -9
    send_signal(ProcessId(pid=process.pid, start_ticks=stat.start_ticks), signal.SIGKILL)  # gone: nobody is meant


def test_a_whole_family_is_ended_and_nobody_else(tmp_path: Path) -> None:
    mine, other = str(tmp_path / "mine"), str(tmp_path / "mine2")
    bystander = start(other)
    family = start(mine, STUBBORN)
    deadline_s = time.monotonic() + 20
    while len(processes_of_run(mine)) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert processes_of_run(mine)[0].pid == family.pid
    assert end_processes(lambda: processes_of_run(mine), term_grace_s=0.5) == ()
    assert processes_of_run(mine) == ()
    assert family.wait(timeout=10) == -9
    assert bystander.poll() is None
    assert len(wait_until_gone(lambda: processes_of_run(other), timeout_s=0.1)) == 1
    bystander.kill()
    bystander.wait()


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with hold_lock(path, what="run r"):
        with (
            pytest.raises(SubmitError, match="run r is being followed by another launcher"),
            hold_lock(path, what="run r"),
        ):
            pass
        assert path.exists()
    assert not path.exists()
    path.touch()  # left behind by a killed launcher
    with hold_lock(path, what="run r"):
        pass
    with pytest.raises(SubmitError, match="cannot be locked"), hold_lock(tmp_path / "no" / ".lock", what="run r"):
        pass


def test_ports() -> None:
    import socket

    port = choose_port("seed")
    assert FIRST_PORT <= port <= LAST_PORT
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
        assert choose_port("seed") != port
    assert port_is_free(port)


def test_stop_requests() -> None:
    before = signal.getsignal(signal.SIGINT)
    with collect_stop_requests() as requests:
        assert requests.first is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # within the same moment: meant once
        assert (requests.first, requests.is_forced) == (signal.SIGTERM, False)
        time.sleep(SAME_REQUEST_S + 0.1)
        signal.raise_signal(signal.SIGHUP)  # the terminal goes; nobody asked again
        assert not requests.is_forced
        signal.raise_signal(signal.SIGINT)
        assert requests.is_forced
    assert signal.getsignal(signal.SIGINT) is before


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with collect_stop_requests() as requests:
            signal.raise_signal(signal.SIGHUP)
            assert requests.first is None
    finally:
        signal.signal(signal.SIGHUP, before)
