"""DeepSpeed's configuration for ZeRO-2 and ZeRO-3: what the launcher writes, and what a traced rank trains with."""

from __future__ import annotations

from typing import Any

from launcher.spec import JobSpec, Offload, Precision, ShardKind

# Its progress lines would repeat what metrics.jsonl holds.
STEPS_PER_PRINT = 1_000_000_000


def deepspeed_config(spec: JobSpec) -> dict[str, Any]:
    """The DeepSpeed configuration in numbers, never "auto": what was planned is what runs.

    train_batch_size is left out, for DeepSpeed computes it; the optimizer and the schedule are the Trainer's.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": spec.micro_batch,
        "gradient_accumulation_steps": spec.gradient_accumulation,
        "gradient_clipping": spec.train.max_grad_norm,
        "steps_per_print": STEPS_PER_PRINT,
        "zero_allow_untested_optimizer": True,
        "bf16": _bf16(spec.train.precision),
        "fp16": {"enabled": spec.train.precision is Precision.FP16_MIXED},
        "zero_optimization": _zero_optimization(spec),
    }
    if spec.shard.offload is not Offload.NONE:
        # torch's AdamW on the CPU. Otherwise DeepSpeed insists on its own, which it compiles on the spot.
        config["zero_force_ds_cpu_optimizer"] = False
    return config


def _bf16(precision: Precision) -> dict[str, bool]:
    if precision is Precision.BF16_PURE:
        return {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return {"enabled": precision is Precision.BF16_MIXED}


def _zero_optimization(spec: JobSpec) -> dict[str, Any]:
    """Names of DeepSpeed 0.19.8, runtime/zero/config.py; sizes are in elements."""
    shard = spec.shard
    zero: dict[str, Any] = {
        "stage": 3 if shard.kind is ShardKind.ZERO3 else 2,
        "overlap_comm": shard.overlap_comm,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": shard.reduce_bucket_size,
        "allgather_bucket_size": shard.allgather_bucket_size,
    }
    to_host = {"device": "cpu", "pin_memory": spec.device.kind == "cuda"}
    if shard.offload is not Offload.NONE:
        zero["offload_optimizer"] = to_host
    if shard.kind is ShardKind.ZERO3:
        zero |= {
            "stage3_prefetch_bucket_size": shard.prefetch_bucket_size,
            "stage3_param_persistence_threshold": shard.param_persistence_threshold,
            "stage3_max_live_parameters": shard.max_live_parameters,
            "stage3_max_reuse_distance": shard.max_reuse_distance,
            "sub_group_size": shard.sub_group_size,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if shard.offload is Offload.ALL:
            zero["offload_param"] = to_host
    unset = sorted(name for name, value in zero.items() if value is None)
    assert not unset, f"the job leaves these of DeepSpeed's numbers open: {unset}"
    return zero
