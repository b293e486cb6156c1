"""The ranks' environment: what a job adds to the launcher's own, and what it may not inherit.

A launch plan holds the difference only, so no secret of the user's environment is ever written down: a key
such as WANDB_API_KEY reaches the ranks by inheritance.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path

from launcher.runs.processes import RUN_VARIABLE
from launcher.spec import ClusterKind, JobSpec, MethodKind, ShardKind, TrackerKind

WANDB_HOST = "api.wandb.ai"

INTERFACE_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")

# Left behind by `accelerate config`, by another launcher, or by a job this one was started from: each of them
# changes silently how the ranks train or where they look for each other.
DROPPED_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "TORCH_ELASTIC_")
DROPPED = frozenset(
    {
        "CROSS_RANK",
        "CROSS_SIZE",
        "DS_ACCELERATOR",
        "DS_ENV_FILE",
        "FITLAUNCH_ATTEMPT",
        "FITLAUNCH_JOB_ID",
        "FITLAUNCH_LAUNCHER",
        "FITLAUNCH_LEASE",
        "FITLAUNCH_NODE",
        "FITLAUNCH_PLAN_HASH",
        "FITLAUNCH_RUN",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "PYTORCH_ALLOC_CONF",
        "PYTORCH_CUDA_ALLOC_CONF",
        "RANK",
        "ROLE_NAME",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "WORLD_SIZE",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the environment difference depends on beside the job.

    num_cpus: cores the ranks of this node may use. visible_devices: what CUDA_VISIBLE_DEVICES names, or None
    where it is not set. has_wandb_key: whether the ranks will inherit one.
    """

    num_cpus: int = 1
    visible_devices: tuple[str, ...] | None = None
    has_wandb_key: bool = False


def read_host_facts(environ: Mapping[str, str]) -> HostFacts:
    """The facts of this host and of the given environment."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return HostFacts(
        num_cpus=len(os.sched_getaffinity(0)),
        visible_devices=None if visible is None else tuple(name.strip() for name in visible.split(",") if name.strip()),
        has_wandb_key=bool(environ.get("WANDB_API_KEY")) or _is_logged_in_to_wandb(environ),
    )


def _is_logged_in_to_wandb(environ: Mapping[str, str]) -> bool:
    """Whether `wandb login` has left a key in ~/.netrc; the key itself is not looked at."""
    try:
        return netrc(Path(environ.get("HOME", "/")) / ".netrc").authenticators(WANDB_HOST) is not None
    except (OSError, NetrcParseError):
        return False


def chosen_devices(spec: JobSpec, host: HostFacts) -> tuple[str, ...] | None:
    """The GPUs of the ranks, by the names the user made visible; None where the ranks take the host's first ones."""
    if spec.device.kind == "cpu" or host.visible_devices is None:
        return None
    return host.visible_devices[: spec.gpus_per_node]


def environment(spec: JobSpec, *, run_dir: str, host: HostFacts) -> dict[str, str]:
    """The variables the job adds, sorted by name. How they differ by attempt is added when it starts."""
    added = {
        RUN_VARIABLE: run_dir,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONFAULTHANDLER": "1",  # a crash in native code leaves a traceback in the rank's log
        "PYTHONSAFEPATH": "1",  # a jobs/ folder in the working directory cannot shadow ours
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",  # its threads and forked data loader workers deadlock
    }
    num_cpus = _num_cpus(spec, host)
    if num_cpus is not None:
        added["OMP_NUM_THREADS"] = str(max(1, num_cpus // spec.gpus_per_node))
    if spec.cluster.network_interface is not None:
        added |= dict.fromkeys(INTERFACE_VARIABLES, spec.cluster.network_interface)
    if spec.model.source != "hub":
        added["HF_HUB_OFFLINE"] = "1"
    added |= _device(spec, host) | _sharding(spec) | _tracker(spec, run_dir, host)
    return dict(sorted(added.items()))


def _num_cpus(spec: JobSpec, host: HostFacts) -> int | None:
    """Cores that the ranks of a node share; None where each node has to tell its own number."""
    if spec.cluster.kind is ClusterKind.LOCAL:
        return host.num_cpus
    return None if spec.cluster.slurm is None else spec.cluster.slurm.cpus_per_node


def _device(spec: JobSpec, host: HostFacts) -> dict[str, str]:
    if spec.device.kind == "cpu":
        return {
            "CUDA_VISIBLE_DEVICES": "",  # libraries take a GPU that they can see, whatever the job says
            "DS_ACCELERATOR": "cpu",
        }
    added = {
        "CUDA_MODULE_LOADING": "LAZY",  # with EAGER in the user's shell the context takes twice what is planned
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        # Where the flight recorder says which collective each rank was in when one timed out.
        "TORCH_FR_DUMP_TEMP_FILE": "logs/nccl-trace-rank-",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    devices = chosen_devices(spec, host)
    if devices is not None:
        added["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return added


def _sharding(spec: JobSpec) -> dict[str, str]:
    """What transformers reads before the Trainer exists (transformers 5.23, distributed/fsdp.py is_fsdp_enabled).

    Without it every rank loads the whole model into host RAM. 4-bit weights cannot go through the meta device.
    """
    if spec.shard.kind is not ShardKind.FSDP:
        return {}
    from_rank_0 = spec.method.kind is not MethodKind.QLORA
    return {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": str(from_rank_0).lower(),
        "FSDP_VERSION": "2",
    }


def _tracker(spec: JobSpec, run_dir: str, host: HostFacts) -> dict[str, str]:
    if spec.tracker.kind is not TrackerKind.WANDB:
        return {}
    added = {"WANDB_DIR": run_dir, "WANDB_SILENT": "true"}
    return added if host.has_wandb_key else added | {"WANDB_MODE": "offline"}


def inherited_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The launcher's environment without what the ranks may not inherit."""
    return {
        name: value for name, value in environ.items() if name not in DROPPED and not name.startswith(DROPPED_PREFIXES)
    }
