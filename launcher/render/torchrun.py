"""The command by which torchrun starts the ranks of one node."""

from __future__ import annotations

from launcher.spec import JobSpec

# How long torchrun, when it is told to end, lets the ranks save before it kills them. Its default of 30 s cuts
# the saving of a large model in two.
SHUTDOWN_TIMEOUT_S = 600


def torchrun_argv(spec: JobSpec, *, run_dir: str, python: str) -> tuple[str, ...]:
    """torchrun for one node. Paths of logs are relative to the attempt's folder, in which the command runs.

    --standalone takes a free port of its own, so two jobs on a host never meet.
    --max-restarts=0, for a restart in place would train on without anybody having looked why.
    """
    return (
        python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nnodes=1",
        f"--nproc-per-node={spec.gpus_per_node}",
        "--max-restarts=0",
        "--log-dir=logs",
        "--redirects=3",
        f"--shutdown-timeout={SHUTDOWN_TIMEOUT_S}",
        "-m",
        "jobs.train",
        run_dir,
    )
