"""The bed itself: a cluster that is like one, faults that are faults, and nothing left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.bed import Bed, BedError, BedSettings
from slurm.bed.processes import hold_namespaces, members_of, name_of, namespaces_of, wait_until
from tests.slurm.harness import ROOT, assert_gone, job_state, submit, wait_for_state

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

LEFT_BEHIND = ("setsid", "--fork", "bash", "-c", "exec sleep 4711 >/dev/null 2>&1")


@pytest.fixture
def folder(bed_is_possible: None, tmp_path: Path) -> Path:
    return tmp_path / "bed"


def test_the_nodes_are_hosts_of_their_own_with_gpus_that_can_be_asked_for(bed: Bed) -> None:
    script = 'echo "$(hostname) $(hostname --all-ip-addresses)$CUDA_VISIBLE_DEVICES"'
    done = bed.login(("srun", "--nodes=3", "--gpus-per-node=2", "bash", "-c", script))
    assert sorted(done.stdout.splitlines()) == ["node1 10.77.0.11 0,1", "node2 10.77.0.12 0,1", "node3 10.77.0.13 0,1"]
    too_many = bed.login(("srun", "--nodes=1", "--gres=gpu:9", "true"))
    assert "Requested node configuration is not available" in too_many.stderr


def test_ssh_and_pdsh_reach_every_node_without_a_password(bed: Bed) -> None:
    done = bed.login(("pdsh", "-R", "ssh", "-w", "node[1-3]", "hostname"))
    assert sorted(done.stdout.splitlines()) == [f"node{n}: node{n}" for n in (1, 2, 3)]
    assert bed.on("node3", ("ssh", "node1", "hostname")).stdout == "node1\n"


def test_shared_memory_and_run_are_each_hosts_own_and_other_folders_are_shared(bed: Bed, tmp_path: Path) -> None:
    for path in (Path("/dev/shm/mark"), Path("/run/mark"), tmp_path / "mark"):
        bed.must("node1", ("touch", str(path)))
    seen = [bed.on("node2", ("test", "-e", path)).returncode for path in ("/dev/shm/mark", "/run/mark")]
    assert seen == [1, 1]
    assert not Path("/dev/shm/mark").exists()
    assert bed.on("node2", ("test", "-e", str(tmp_path / "mark"))).returncode == 0


def test_a_command_that_takes_too_long_is_killed_inside(bed: Bed) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        bed.on("node1", ("sleep", "4711"), timeout_s=1.0)
    assert wait_until(lambda: not bed.strangers(), timeout_s=5)


def test_a_node_without_power_comes_back_with_nothing_on_it(bed: Bed) -> None:
    bed.must("node2", LEFT_BEHIND)
    bed.must("node2", ("touch", "/dev/shm/mark"))
    bed.power_off("node2")
    assert not bed.is_on("node2")
    assert bed.login(("ssh", "-o", "ConnectTimeout=1", "node2", "true")).returncode == 255
    bed.boot("node2")
    bed.wait_until_idle()
    assert bed.on("node2", ("test", "-e", "/dev/shm/mark")).returncode == 1
    assert bed.strangers() == ()
    assert bed.login(("ssh", "node2", "hostname")).stdout == "node2\n"


def test_behind_a_cut_cable_processes_go_on(bed: Bed) -> None:
    bed.must("node2", LEFT_BEHIND)
    bed.cut("node2")
    assert bed.login(("ssh", "-o", "ConnectTimeout=1", "node2", "true")).returncode == 255
    assert len(bed.strangers()) == 1
    bed.mend("node2")
    assert bed.login(("ssh", "node2", "pkill", "sleep")).returncode == 0


def test_steps_outlive_their_slurmd(bed: Bed) -> None:
    job = submit(bed, "#!/bin/bash\nexec sleep 4711\n", "--nodelist=node3", "--output=/dev/null")
    wait_for_state(bed, job, "RUNNING")
    assert wait_until(lambda: any("sleep 4711" in each for each in bed.strangers()), timeout_s=10)
    bed.kill_slurmd("node3")
    assert any("sleep 4711" in each for each in bed.strangers())
    bed.start_slurmd("node3")
    bed.must("head", ("scancel", job))
    assert wait_for_state(bed, job) == "CANCELLED"


def test_a_controller_hangs_ends_and_comes_back_with_its_jobs(bed: Bed) -> None:
    job = submit(bed, "#!/bin/bash\ntrue\n", "--hold", "--output=/dev/null")
    bed.hang_controller()
    with pytest.raises(subprocess.TimeoutExpired):
        bed.login(("squeue",), timeout_s=2)
    bed.wake_controller()
    assert job_state(bed, job) == "PENDING"
    bed.stop_controller()
    assert bed.login(("squeue",)).returncode == 1
    bed.start_controller()
    assert wait_until(lambda: job_state(bed, job) == "PENDING", timeout_s=20)
    bed.must("head", ("scancel", job))
    assert wait_for_state(bed, job) == "CANCELLED"


def test_a_disk_is_full_on_every_host_or_one_nodes_own(bed: Bed, tmp_path: Path) -> None:
    full, own = tmp_path / "full", tmp_path / "own"
    bed.small_disk(full, 64 * 1024)
    bed.own_disk("node1", own)
    done = bed.on("node2", ("dd", "if=/dev/zero", f"of={full / 'zeros'}", "bs=4096", "count=32"))
    assert "No space left on device" in done.stderr
    assert bed.path_inside("node1", full / "zeros").stat().st_size == 64 * 1024
    bed.must("node1", ("touch", str(own / "mark")))
    assert bed.on("node2", ("test", "-e", str(own / "mark"))).returncode == 1
    bed.remove_disk("head", full)
    bed.remove_disk("node1", own)
    assert list(full.iterdir()) == list(own.iterdir()) == []


def test_two_beds_stand_side_by_side_and_go_without_a_trace(bed: Bed, folder: Path) -> None:
    other = Bed(folder, BedSettings(num_nodes=1, num_gpus_per_node=0))
    other.up()
    with other.hold_namespaces() as namespaces, bed.hold_namespaces() as its:
        try:
            assert namespaces.isdisjoint(its)
            assert other.on("node1", ("getent", "hosts", "node1")).stdout.split() == ["10.77.0.11", "node1"]
            assert bed.on("node1", ("getent", "hosts", "node1")).stdout.split() == ["127.0.1.1", "node1"]
            assert other.login(("srun", "hostname")).stdout == "node1\n"
            with pytest.raises(BedError, match="is not empty"):
                Bed(folder).up()
        finally:
            Bed.at(folder).down()  # by its folder alone, as the command does it
            other.down()
        assert_gone(other, namespaces)
    assert bed.idle_nodes() == {"node1", "node2", "node3"}


@contextlib.contextmanager
def process_with_namespaces() -> Iterator[int]:
    """A process in namespaces of its own, which are gone with it."""
    with subprocess.Popen(("unshare", "--uts", "--ipc", "cat"), stdin=subprocess.PIPE) as process:
        assert wait_until(lambda: name_of(process.pid) == "cat", timeout_s=10)
        yield process.pid


def test_the_number_of_a_namespace_that_is_held_goes_to_no_other(bed_is_possible: None) -> None:
    with contextlib.ExitStack() as stack:
        with process_with_namespaces() as pid:
            held = stack.enter_context(hold_namespaces([pid])) - namespaces_of(os.getpid())
        assert len(held) == 2
        for _ in range(3):
            with process_with_namespaces() as pid:
                assert namespaces_of(pid).isdisjoint(held)


@pytest.fixture
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    code = f"""
import time
from pathlib import Path
from slurm.bed import Bed, BedSettings
bed = Bed(Path({str(folder)!r}), BedSettings(num_nodes=1), tied=True)
bed.up()
print("up", flush=True)
time.sleep(600)
"""
    with subprocess.Popen((sys.executable, "-c", code), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_tied_bed_ends_with_its_owner(owner: subprocess.Popen[str], folder: Path) -> None:
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    with Bed.at(folder).hold_namespaces() as namespaces:
        assert len(members_of(namespaces)) > 5
        owner.send_signal(signal.SIGKILL)
        assert wait_until(lambda: members_of(namespaces) == (), timeout_s=10)


def test_the_commands(folder: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-m", "slurm.bed", *words),
            cwd=ROOT,
            env=os.environ | {"FITLAUNCH_BED": str(folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert command("up", "1", "--gpus=2").returncode == 0
    try:
        assert command("exec", "sinfo", "--noheader", "--format=%P %D %G %T").stdout.splitlines() == [
            "main* 1 gpu:2 idle",
            "high 1 gpu:2 idle",
            "short 1 gpu:2 idle",
            "single 1 gpu:2 idle",
        ]
        assert command("exec", "@node1", "bash", "-c", "hostname; exit 3").returncode == 3
        assert command("power-off", "node1").returncode == 0
        off = command("exec", "@node1", "true")
        assert (off.returncode, off.stderr) == (2, "node1 is off: boot it first\n")
        assert command("boot", "node1").returncode == 0
        unknown = command("cut", "node2")
        assert (unknown.returncode, unknown.stderr) == (2, "node2 is no node of this bed: its nodes are node1\n")
    finally:
        down = command("down")
    assert down.returncode == 0
    assert not folder.exists()
    again = command("down")
    assert (again.returncode, again.stderr) == (2, f"no bed is in {folder}: bring one up first\n")
