"""What Hydra may compose: the mutable mirror of launcher.spec, with `auto` and null where a user may leave a choice.

launcher.compose turns it into a frozen JobSpec. `auto` is decided from the host, the device or the model; null
means that the knob does not apply, or is not wanted. Hydra needs mutable dataclasses (a frozen one fails with
ReadonlyConfigError), and plain types: no Literal, no tuple.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from launcher.paths import RUNS_DIR

AUTO = "auto"
MISSING = "???"  # as omegaconf.MISSING, without importing it: the file of the group has to give it


@dataclass
class ModelConf:
    name: str = MISSING
    source: str = MISSING
    hub_id: str | None = None
    revision: str | None = None
    license: str = "unknown"
    gated: bool = False
    path: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class MethodConf:
    name: str = MISSING
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    targets: Any = None  # 'all-linear' or a list of names
    bias: str | None = None
    quant_type: str | None = None
    double_quant: bool | str | None = None
    compute_dtype: str | None = None
    storage_dtype: str | None = None


@dataclass
class ShardConf:
    name: str = MISSING
    offload: str = "none"
    bucket_cap_mb: int | str | None = None
    gradient_as_bucket_view: bool | str | None = None
    reshard_after_forward: bool | str | None = None
    reduce_bucket_size: int | str | None = None
    allgather_bucket_size: int | str | None = None
    overlap_comm: bool | str | None = None
    prefetch_bucket_size: int | str | None = None
    param_persistence_threshold: int | str | None = None
    max_live_parameters: int | str | None = None
    max_reuse_distance: int | str | None = None
    sub_group_size: int | str | None = None


@dataclass
class DataConf:
    name: str = MISSING
    path: str | None = None
    eval_path: str | None = None
    eval_fraction: float = 0.1
    max_samples: int | None = None


@dataclass
class TrainConf:
    epochs: float = 1.0
    max_steps: int | None = None
    global_batch: int = 16
    micro_batch: int | str = AUTO
    sequence_length: int = 512
    packing: bool = False
    precision: str = AUTO
    optimizer: str = "adamw"
    learning_rate: int | float | str = AUTO  # OmegaConf takes `1` for a float, but not in a union
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    activation_checkpointing: str = "full"
    attention: str = AUTO
    loss: str = "cross_entropy"
    log_every_steps: int = 1
    eval_every_steps: int | None = None
    save_every_steps: int | None = None
    keep_checkpoints: int = 2
    dataloader_workers: int = 0
    seed: int = 42


@dataclass
class DeviceConf:
    name: str = MISSING
    kind: str = MISSING
    memory_bytes: int | None = None
    compute_capability: list[int] | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    source: str = ""


@dataclass
class ClusterConf:
    name: str = MISSING
    kind: str = MISSING
    network_interface: str | None = None
    environment: list[str] = field(default_factory=list)
    # hosts
    hostfile: str | None = None
    # slurm
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    nodelist: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    gpu_request: str | None = None
    gpu_type: str | None = None
    cpus_per_node: int | None = None
    mem: Any = None  # auto (from the plan), 0 (all of the node), or a size such as 64G
    time: Any = None  # minutes, or Slurm's own [days-]hours:minutes:seconds
    lead_s: int | str | None = None
    requeue: bool | None = None
    max_attempts: int | None = None
    setup: list[str] = field(default_factory=list)
    container: str | None = None
    container_mounts: list[str] = field(default_factory=list)
    max_nodes: int | None = None
    max_time: Any = None
    max_array_size: int | None = None
    max_parallel: int | None = None


@dataclass
class TrackerConf:
    name: str = "tensorboard"
    project: str | None = None


@dataclass
class PlanConf:
    by: str = "auto"
    format: str = "table"
    explain: bool = False


@dataclass
class SweepConf:
    drop: bool = False
    wait: bool = False
    parallel: int | str = AUTO


@dataclass
class JobConf:
    """The root of the configuration."""

    model: ModelConf = field(default_factory=ModelConf)
    method: MethodConf = field(default_factory=MethodConf)
    shard: ShardConf = field(default_factory=ShardConf)
    data: DataConf = field(default_factory=DataConf)
    train: TrainConf = field(default_factory=TrainConf)
    device: DeviceConf = field(default_factory=DeviceConf)
    cluster: ClusterConf = field(default_factory=ClusterConf)
    tracker: TrackerConf = field(default_factory=TrackerConf)
    plan: PlanConf = field(default_factory=PlanConf)
    sweep: SweepConf = field(default_factory=SweepConf)
    mode: str = "run"
    fit: str = "refuse"
    launcher: str = "torchrun"
    gpus: int | str = AUTO
    nodes: int | str = AUTO
    runs_dir: str = RUNS_DIR
