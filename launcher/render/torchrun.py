"""The command by which torchrun starts the ranks of one node."""

from __future__ import annotations

from launcher.spec import ClusterKind, JobSpec

# How long torchrun, when it is told to end, lets the ranks save before it kills them. Its default of 30 s cuts
# the saving of a large model in two.
SHUTDOWN_TIMEOUT_S = 600
# How long the first node waits for the last. Nodes of a cluster start minutes apart where an image is pulled first.
JOIN_TIMEOUT_S = 900
# By default torchrun dies of USR1, and leaves its ranks behind.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def torchrun_argv(spec: JobSpec, *, run_dir: str, python: str) -> tuple[str, ...]:
    """torchrun for one node. Paths of logs are relative to the node's folder, in which the command runs.

    --max-restarts=0, for a restart in place would train on without anybody having looked why.
    """
    meeting = _alone() if spec.cluster.kind is ClusterKind.LOCAL else _with_others(spec)
    return (
        python,
        "-m",
        "torch.distributed.run",
        *meeting,
        f"--nproc-per-node={spec.gpus_per_node}",
        "--max-restarts=0",
        "--log-dir=logs",
        "--redirects=3",
        f"--shutdown-timeout={SHUTDOWN_TIMEOUT_S}",
        "-m",
        "jobs.train",
        run_dir,
    )


def _alone() -> tuple[str, ...]:
    """--standalone takes a free port of its own, so two jobs on a host never meet."""
    return ("--standalone", "--nnodes=1")


def _with_others(spec: JobSpec) -> tuple[str, ...]:
    """All nodes meet at the head; see NODE_FIELDS for what is filled in.

    is_host: torchrun's own guess compares host names, and takes none for the head where they differ from the
    endpoint's. The ranks of a node are not numbered by its node rank: c10d sorts whoever joined.
    """
    return (
        f"--nnodes={spec.nodes}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint={head}:{port}",
        "--rdzv-id={rendezvous}",
        f"--rdzv-conf=is_host={{is_head}},join_timeout={JOIN_TIMEOUT_S}",
        "--local-addr={address}",
        f"--signals-to-handle={SIGNALS}",
    )
