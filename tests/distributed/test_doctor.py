"""The check-up of this host, with real ranks that reduce a tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(200)]


def test_this_host_is_fit_for_two_cpu_ranks(tmp_path: Path) -> None:
    command = (str(Path(sys.executable).parent / "fitlaunch"), "doctor", "device=cpu", "gpus=2")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "gloo over 2 ranks on " in done.stderr
    assert done.stderr.splitlines()[-1] == "Nothing is wrong."
    assert list((tmp_path / "runs" / "doctor").iterdir()) == []
