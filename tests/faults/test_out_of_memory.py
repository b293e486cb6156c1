"""A rank that the kernel kills for want of memory, in a real control group."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.runs.diagnosis.read import read_diagnosis
from launcher.runs.diagnosis.types import Kind
from launcher.runs.records import Status
from tests.faults.harness import (
    assert_nothing_left,
    assert_state,
    launcher_process,
    with_stubs,
)
from tests.launching import make_launch, make_spec

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

LIMIT_BYTES = 700 << 20  # the launcher and two stubs take some 150 MiB
V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group with little memory; the file that takes a process into it."""
    group, limit = (V1, "memory.limit_in_bytes") if V1.is_dir() else (V2, "memory.max")
    folder = group / f"fitlaunch-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (folder / limit).write_text(str(LIMIT_BYTES))
        except OSError as error:
            pytest.skip(f"no control group for memory can be made here: {error}")
        yield folder / "cgroup.procs"
    finally:
        for _ in range(50):  # its last process may not be reaped yet
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def test_a_rank_that_the_kernel_kills(tmp_path: Path, limited: Path) -> None:
    launch = with_stubs(
        make_launch(tmp_path, spec=make_spec(), run_id="run", python=sys.executable),
        real_torchrun=False, STUB_MODE="eat", STUB_RANK="0", STUB_STEPS="100000",
    )  # fmt: skip
    with launcher_process(launch) as launcher:
        limited.write_text(str(launcher.process.pid))
        assert launcher.wait() == 5
        found = read_diagnosis(launcher.run, 1)
        assert found is not None
        assert (found.kind, found.rank) == (Kind.KERNEL_OUT_OF_MEMORY, 0)
        assert launcher.state().reason == "rank 0 was killed by the kernel: the node had no more memory for the job"
        assert found.because[0].endswith(" counts 1 killed for want of memory")
        assert_state(launcher, Status.FAILED, 5)
        assert_nothing_left(launcher)
