"""DeepSpeed: the command by which its launcher starts the ranks."""

from __future__ import annotations

from launcher.errors import InputError, Problem
from launcher.render.environment import HostFacts, chosen_devices
from launcher.spec import JobSpec


def deepspeed_argv(spec: JobSpec, *, run_dir: str, python: str, master_port: int, host: HostFacts) -> tuple[str, ...]:
    """DeepSpeed's launcher for one node. Paths of logs are relative to the attempt's folder, in which it runs.

    --hostfile=/dev/null: otherwise a /job/hostfile that happens to be there takes the job to other hosts.
    --include instead of --num_gpus where the user chose GPUs: with --num_gpus it overrides CUDA_VISIBLE_DEVICES
    and takes the first ones (DeepSpeed 0.19.8, launcher/runner.py main).
    """
    return (
        python,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile=/dev/null",
        _which_devices(spec, host),
        "--master_addr=127.0.0.1",
        f"--master_port={master_port}",
        "--no_local_rank",
        "--enable_each_rank_log=logs",
        "--module",
        "jobs.train",
        run_dir,
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
