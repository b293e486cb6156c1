"""What to do about each kind of failure. '{run}' and '{host}' are filled in."""

from __future__ import annotations

import shlex

from launcher.runs.diagnosis.types import Evidence, Failure, Kind

ADVICE: dict[Kind, tuple[str, ...]] = {
    Kind.CUDA_OUT_OF_MEMORY: ("take one of the overrides below and launch anew; the plan of this run is frozen",),
    Kind.HOST_OUT_OF_MEMORY: (
        "the host's RAM is full: fewer data loader workers, shard.offload=none, or more RAM (Slurm: cluster.mem=)",
    ),
    Kind.KERNEL_OUT_OF_MEMORY: (
        "give the job more host RAM (Slurm: cluster.mem=, or 0 for all of the node)",
        "or need less of it: shard.offload=none, fewer train.dataloader_workers, fewer ranks on a node",
    ),
    Kind.SHARED_MEMORY_FULL: (
        "shared memory (/dev/shm) is full or too small: train.dataloader_workers=0, or more (container: --shm-size)",
    ),
    Kind.DISK_FULL: ("make room where the run folder lies, then fitlaunch resume {run}",),
    Kind.FILE_MISSING: (
        "the file is not there for this node: keep models and data where every node sees them",
        "fitlaunch doctor says which nodes do not see the shared folder",
    ),
    Kind.HUB_UNREACHABLE: (
        "compute nodes often have no internet: load the model once where there is, into a shared HF_HOME, "
        "or use model=path model.path=DIR",
    ),
    Kind.IMPORT_ERROR: (
        "the node has other packages than this host: use one environment on a shared folder, or cluster.setup=[...]",
        "fitlaunch doctor compares the versions of every node",
    ),
    Kind.GPU_FAULT: (
        "if it happens again on this host, its GPU is suspect: keep away with cluster.exclude=[{host}]",
        "if it happens everywhere, CUDA_LAUNCH_BLOCKING=1 makes the traceback name the line",
    ),
    Kind.PORT_TAKEN: ("another program has the port: fitlaunch resume {run} tries again",),
    Kind.START_REFUSED: ("nothing was trained: launch anew, for a run's plan and folder are frozen",),
    Kind.COLLECTIVE_TIMEOUT: (
        "look at the log of the rank that did not come: fitlaunch logs {run} --rank N",
        "if no rank hung, it is the network: fitlaunch doctor, and cluster.network_interface=NAME",
    ),
    Kind.CONNECTION_LOST: (
        "no rank says that it failed first: a node or the network went away; fitlaunch doctor finds out which",
    ),
    Kind.SIGNAL: ("look at the kernel's log of that host (dmesg) and at who may have killed it",),
    Kind.ORPHANED: ("the launcher was killed: fitlaunch resume {run} goes on from the newest checkpoint",),
    Kind.RENDEZVOUS: (
        "fitlaunch doctor finds nodes that cannot reach each other, as a cluster.exclude=[...]",
        "on a host with several networks name the one to use: cluster.network_interface=NAME",
    ),
    Kind.NODE_LOST: (
        "fitlaunch resume {run} goes on from the newest complete checkpoint",
        "keep away from the node if it is lost again: cluster.exclude=[{host}]",
    ),
    Kind.TIME_LIMIT: (
        "fitlaunch resume {run} goes on from the newest complete checkpoint",
        "give the ranks more time to save (cluster.lead_s=), or the job more time (cluster.time=)",
    ),
    Kind.PREEMPTED: ("fitlaunch resume {run} goes on from the newest complete checkpoint",),
    Kind.CANCELLED: ("fitlaunch resume {run} goes on from the newest complete checkpoint",),
    Kind.SCHEDULER: ("ask the scheduler: scontrol show job {job}",),
}


def advise(failure: Failure, evidence: Evidence, run: str) -> tuple[str, ...]:
    """What to do now; nothing where only the log tells. What names a host is left out where none is known."""
    job = evidence.word.job_id if evidence.word is not None else ""
    known = {"{run}": shlex.quote(run), "{host}": failure.host, "{job}": job}
    lines = []
    for line in ADVICE.get(failure.kind, ()):
        if all(value or name not in line for name, value in known.items()):
            for name, value in known.items():
                line = line.replace(name, value)
            lines.append(line)
    return tuple(lines)
