"""The first cause among what ranks wrote, how they ended, and what torchrun and DeepSpeed printed."""

# ruff: noqa: E501  log lines as they are printed

from __future__ import annotations

import pytest

from launcher.runs.agent_log import exit_codes, is_closing
from launcher.runs.cause import first_cause
from launcher.runs.records import Failed, RankDeath

TORCHRUN = """\
W1122 02:50:26.587000 9682 torch/distributed/elastic/multiprocessing/api.py:1029] Sending process 9700 closing signal SIGTERM
E1122 02:50:27.088000 9682 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 9701) of binary: python
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
jobs.train FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-22_02:50:27
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 9700)  (SIGTERM)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 9700
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_02:50:27
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 9701) (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 9701
============================================================
"""
TORCHRUN_TOLD = """\
W1122 02:50:26.587000 9682 torch/distributed/elastic/agent/server/api.py:753] Received 15 death signal, shutting down workers
W1122 02:50:26.587000 9682 torch/distributed/elastic/multiprocessing/api.py:1029] Sending process 9700 closing signal SIGTERM
"""
DEEPSPEED = """\
[2026-11-22 02:49:14,998] [INFO] [launch.py:245:main] process 92 spawned with command: ['python', '-u', '-m', 'jobs.train', '/r']
[2026-11-22 02:49:15,007] [INFO] [launch.py:245:main] process 93 spawned with command: ['python', '-u', '-m', 'jobs.train', '/r']
[2026-11-22 02:49:15,017] [INFO] [launch.py:245:main] process 94 spawned with command: ['python', '-u', '-m', 'jobs.train', '/r']
[2026-11-22 02:49:20,021] [INFO] [launch.py:285:main] Process 92 exits successfully.
[2026-11-22 02:49:21,021] [INFO] [launch.py:260:sigkill_handler] Killing subprocess 92
[2026-11-22 02:49:22,021] [ERROR] [launch.py:266:sigkill_handler] ['python', '-u', '-m', 'jobs.train', '/r'] exits with return code = -11
"""
GLOO = "Connection closed by peer [127.0.0.1]:28059"


def note(rank: int, time_s: float, message: str = GLOO, error_type: str = "RuntimeError") -> Failed:
    return Failed(attempt=1, time_s=time_s, rank=rank, host="h", error_type=error_type, message=message, traceback="")


def death(rank: int, seen_at_s: float, exit_code: int | None) -> RankDeath:
    return RankDeath(rank=rank, seen_at_s=seen_at_s, exit_code=exit_code)


def cause(notes: list[Failed], deaths: list[RankDeath]) -> tuple[str, int | None]:
    found = first_cause(notes, deaths, otherwise="the program ended with exit code 1")
    return found.text, found.rank


KILLED = "rank 1 was killed by SIGKILL, which is also what the kernel does when the host is out of memory (see dmesg)"


@pytest.mark.parametrize(
    ("notes", "deaths", "expected"),
    [
        # a rank that raised; its peer noticed
        (
            [note(0, 10.4), note(1, 10.1, "the stub\nfailed", "ValueError")],
            [death(1, 10.6, 1)],
            ("rank 1 failed with ValueError: the stub", 1),
        ),
        # a rank that was killed; its peer wrote a note before anybody noticed the death
        ([note(0, 10.1)], [death(1, 10.3, -9)], (KILLED, 1)),
        # a rank that raised; its peer hung and was killed by the program above half a minute later
        ([note(0, 10.1)], [death(0, 10.2, 1), death(1, 40.3, -9)], (f"rank 0 failed with RuntimeError: {GLOO}", 0)),
        # TERM is how the others are told to end
        ([note(0, 10.1)], [death(1, 10.1, -15)], (f"rank 0 failed with RuntimeError: {GLOO}", 0)),
        # a rank that had ended well is no cause
        ([note(0, 10.1)], [death(1, 5.0, 0)], (f"rank 0 failed with RuntimeError: {GLOO}", 0)),
        # nobody wrote anything
        ([], [death(0, 9.0, -15), death(1, 10.3, -11)], ("rank 1 was killed by SIGSEGV", 1)),
        ([], [death(0, 9.0, 70), death(1, 10.3, 70)], ("rank 0 ended with exit code 70", 0)),
        (
            [],
            [death(0, 9.0, None)],
            ("the ranks ended without a result; the program ended with exit code 1", None),
        ),
        ([note(0, 1.0, "", "KeyboardInterrupt")], [], ("rank 0 failed with KeyboardInterrupt", 0)),
    ],
)
def test_first_cause(notes: list[Failed], deaths: list[RankDeath], expected: tuple[str, int | None]) -> None:
    assert cause(notes, deaths) == expected


def test_exit_codes_from_torchrun() -> None:
    assert exit_codes(TORCHRUN, unknown=()) == {0: -15, 1: -9}
    assert exit_codes(TORCHRUN, unknown=(2,)) == {0: -15, 1: -9, 2: 0}  # it lists whoever failed


def test_exit_codes_from_deepspeed() -> None:
    assert exit_codes(DEEPSPEED, unknown=()) == {0: 0}  # nobody knows whose code it is
    assert exit_codes(DEEPSPEED, unknown=(0, 2, 1)) == {0: 0, 2: -11}


@pytest.mark.parametrize(
    ("text", "closing"), [(TORCHRUN, True), (TORCHRUN_TOLD, False), (DEEPSPEED, True), ("", False)]
)
def test_whether_the_other_ranks_are_being_ended(text: str, closing: bool) -> None:
    assert is_closing(text) is closing
