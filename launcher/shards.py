"""What each sharding uses unless someone sets it: what `auto` means for every knob of conf/shard, and for the dtype
that quantised weights are stored in.

The numbers are the libraries' own defaults, written out, so that what is planned, shown and rendered is one set of
numbers and no library fills a gap with another.
"""

from __future__ import annotations

from launcher.spec import Dtype, JobSpec, Offload, QuantType, ShardKind, ShardSpec

DDP_BUCKET_CAP_MB = 25  # torch 2.13 nn/parallel/distributed.py, bucket_cap_mb
ALLGATHER_BUCKET_ELEMENTS = 500_000_000  # deepspeed 0.19.8 runtime/zero/config.py
SUB_GROUP_ELEMENTS = 1_000_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000
MAX_REUSE_DISTANCE = 1_000_000_000


def storage_dtype(quant_type: QuantType | None, kind: ShardKind, compute: Dtype | None) -> Dtype | None:
    """What quantised weights are stored in: FSDP2 splits 4-bit ones only in the dtype of the others."""
    if quant_type is QuantType.INT8:
        return Dtype.INT8
    return compute if kind is ShardKind.FSDP else Dtype.UINT8


def waits_in_host_memory(spec: JobSpec) -> bool:
    """Whether each rank has the quantised model in host RAM until it is sharded (jobs/waiting.py). ZeRO-3 loads it onto
    the GPU, 8-bit weights are not split, and a CPU has nowhere else."""
    is_4bit = spec.method.quant_type in (QuantType.NF4, QuantType.FP4)
    return is_4bit and spec.shard.kind is ShardKind.FSDP and spec.device.kind == "cuda"


def shard_defaults(kind: ShardKind, hidden_size: int, *, on_cuda: bool) -> ShardSpec:
    """A sharding with every knob that belongs to it at its default, offloading nothing.

    DeepSpeed sizes count elements. The three that depend on the model follow transformers 5.23
    integrations/deepspeed.py (trainer_config_finalize), which puts them where a file says "auto": reduce bucket H*H,
    prefetch int(0.9*H*H), persistence 10*H. DeepSpeed's own defaults, for a file that leaves them out, are 5e8, 5e7 and
    1e5 (0.19.8 runtime/zero/config.py); whoever wants those names the numbers, as conf/shard/zero3.yaml says.
    overlap_comm follows deepspeed 0.19.8 runtime/zero/config.py (None becomes True for stage 3 only); a CPU has no
    stream to overlap on.
    """
    match kind:
        case ShardKind.DDP:
            return ShardSpec(
                kind=kind, offload=Offload.NONE, bucket_cap_mb=DDP_BUCKET_CAP_MB, gradient_as_bucket_view=True
            )
        case ShardKind.FSDP:
            return ShardSpec(kind=kind, offload=Offload.NONE, reshard_after_forward=True)
        case ShardKind.ZERO2:
            return ShardSpec(
                kind=kind,
                offload=Offload.NONE,
                reduce_bucket_size=hidden_size * hidden_size,
                allgather_bucket_size=ALLGATHER_BUCKET_ELEMENTS,
                overlap_comm=False,
            )
        case ShardKind.ZERO3:
            return ShardSpec(
                kind=kind,
                offload=Offload.NONE,
                reduce_bucket_size=hidden_size * hidden_size,
                allgather_bucket_size=ALLGATHER_BUCKET_ELEMENTS,
                overlap_comm=on_cuda,
                prefetch_bucket_size=int(0.9 * hidden_size * hidden_size),
                param_persistence_threshold=10 * hidden_size,
                max_live_parameters=MAX_LIVE_PARAMETERS,
                max_reuse_distance=MAX_REUSE_DISTANCE,
                sub_group_size=SUB_GROUP_ELEMENTS,
            )
