"""Jobs on a bed, each waited for with a hard limit; and the proof that nothing of them is left."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from slurm.bed import Bed
from slurm.bed.processes import members_of, name_of, send, wait_until
from slurm.bed.settings import HEAD

ROOT = Path(__file__).parents[2]
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
)
# A node that does not answer is down after SlurmdTimeout=10 s; Slurm looks at its nodes from time to time only.
NODE_LOSS_S = 60.0
ENDING_S = 15.0


def submit(bed: Bed, script: str, *options: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Send a batch script; its job's id."""
    done = bed.login(("sbatch", "--parsable", *options), text_in=script, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().partition(";")[0]


def job_fields(bed: Bed, job_id: str) -> dict[str, str]:
    """What scontrol knows of a job, or of one element of an array; empty for a job that it does not know."""
    done = bed.login(("scontrol", "show", "job", "--oneliner", job_id), timeout_s=20)
    if done.returncode:
        return {}
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[\w:/]+=|\s*$)", done.stdout.splitlines()[0]))


def job_state(bed: Bed, job_id: str) -> str:
    """The state of a job; empty for one that Slurm does not know."""
    return job_fields(bed, job_id).get("JobState", "")


def wait_for_state(bed: Bed, job_id: str, *states: str, timeout_s: float = 60.0) -> str:
    """Wait until a job is in one of these states, or in any that ends it where none is named."""
    wanted = frozenset(states) or ENDED
    if not wait_until(lambda: job_state(bed, job_id) in wanted, timeout_s=timeout_s, poll_s=0.2):
        raise AssertionError(f"job {job_id} is not {sorted(wanted)} after {timeout_s} s: {job_fields(bed, job_id)}")
    return job_state(bed, job_id)


def queued_jobs(bed: Bed) -> list[str]:
    """Every job, or element of an array, that has not ended, as `squeue` names it, with its state."""
    done = bed.login(("squeue", "--noheader", "--array", "--format=%i %j %T %r"), timeout_s=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def jobs_named(bed: Bed, name: str) -> list[str]:
    """The ids of all jobs of that name that Slurm remembers, ended ones too."""
    done = bed.login(("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A"), timeout_s=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@contextlib.contextmanager
def covered(bed: Bed, node: str, folder: Path, size: str = "1m") -> Iterator[None]:
    """An empty disk over a folder, on one node alone."""
    bed.must(node, ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)))
    try:
        yield
    finally:
        bed.must(node, ("umount", "--lazy", str(folder)))


def left_running(bed: Bed) -> list[str]:
    """What a test has left: jobs that have not ended and processes that are not the bed's, a few seconds later."""
    mend(bed)
    wait_until(lambda: not queued_jobs(bed) and not bed.strangers(), timeout_s=ENDING_S, poll_s=0.2)
    return [*queued_jobs(bed), *bed.strangers()]


def mend(bed: Bed) -> None:
    """End every fault of nodes, cables and controller."""
    controllers = [pid for pid in bed.processes(HEAD) if name_of(pid) == "slurmctld"]
    if controllers:
        bed.wake_controller()
    else:
        bed.start_controller()
    for node in bed.settings.nodes:
        if not bed.is_on(node.name):
            bed.boot(node.name)
        bed.mend(node.name)
        if not any(name_of(pid) == "slurmd" for pid in bed.processes(node.name)):
            bed.start_slurmd(node.name)


def heal(bed: Bed) -> None:
    """Bring the bed back to what it was: no jobs, no processes, every node idle."""
    mend(bed)
    if queued_jobs(bed):
        bed.login(("scancel", "--user=root"))
        wait_until(lambda: not queued_jobs(bed), timeout_s=NODE_LOSS_S, poll_s=0.2)
    for stranger in bed.strangers():
        send(int(stranger.partition(" ")[0]), signal.SIGKILL)
    for name in {node.name for node in bed.settings.nodes} - bed.idle_nodes():
        bed.login(("scontrol", "update", f"NodeName={name}", "State=RESUME"))
    bed.wait_until_idle()


def assert_gone(bed: Bed, namespaces: frozenset[str]) -> None:
    """Neither a process, nor a mount, a link or a file is left of a bed."""
    assert namespaces
    assert members_of(namespaces) == ()
    assert str(bed.folder) not in Path("/proc/self/mountinfo").read_text()
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    assert links.isdisjoint({"br0", *(node.link for node in bed.settings.nodes)})
    assert not bed.folder.exists()
