"""What torchrun and DeepSpeed's launcher print about how their ranks ended."""

# ruff: noqa: E501  log lines as they are printed

from __future__ import annotations

import pytest

from launcher.runs.agent_log import exit_codes, is_closing

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
