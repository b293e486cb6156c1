"""DeepSpeed: the command by which its launcher starts the ranks, on this host or, by pdsh, on several."""

from __future__ import annotations

from launcher.errors import InputError, Problem
from launcher.render.environment import HostFacts, chosen_devices
from launcher.spec import ClusterKind, JobSpec


def deepspeed_argv(
    spec: JobSpec, *, run_dir: str, python: str, master_port: int, host: HostFacts, hostfile: str
) -> tuple[str, ...]:
    """DeepSpeed's launcher. Paths of logs are relative to the node's folder, in which it runs."""
    where = _hosts(hostfile) if spec.cluster.kind is ClusterKind.HOSTS else _here(spec, host, master_port)
    return (
        python,
        "-m",
        "deepspeed.launcher.runner",
        *where,
        "--no_local_rank",
        "--enable_each_rank_log=logs",
        "--module",
        "jobs.train",
        run_dir,
    )


def _here(spec: JobSpec, host: HostFacts, master_port: int) -> tuple[str, ...]:
    """--hostfile=/dev/null: otherwise a /job/hostfile that happens to be there takes the job to other hosts.
    --include instead of --num_gpus where the user chose GPUs: with --num_gpus it overrides CUDA_VISIBLE_DEVICES
    and takes the first ones (DeepSpeed 0.19.8, launcher/runner.py main).
    """
    return (
        "--hostfile=/dev/null",
        _which_devices(spec, host),
        "--master_addr=127.0.0.1",
        f"--master_port={master_port}",
    )


def _hosts(hostfile: str) -> tuple[str, ...]:
    """Every host of our own hostfile; see NODE_FIELDS for what is filled in.

    --force_multi: a single host of the file would otherwise be taken for this one. --no_ssh_check: DeepSpeed asks the
    first host alone, and all of them were asked before.
    """
    return (
        f"--hostfile={hostfile}",
        "--launcher=pdsh",
        "--force_multi",
        "--no_ssh_check",
        "--master_addr={head}",
        "--master_port={port}",
    )


def _which_devices(spec: JobSpec, host: HostFacts) -> str:
    devices = chosen_devices(spec, host)
    if devices is None:
        return f"--num_gpus={spec.gpus_per_node}"
    if not all(name.isdecimal() for name in devices):
        raise InputError(
            [
                Problem(
                    field="CUDA_VISIBLE_DEVICES",
                    value=",".join(devices),
                    rule="names GPUs by UUID, which DeepSpeed's launcher does not take",
                    way_out="name them by number, or use launcher=torchrun",
                )
            ]
        )
    return f"--include=localhost:{','.join(devices)}"
