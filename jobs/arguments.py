"""JobSpec -> TrainingArguments, as pure data.

Saving, evaluation and stopping are decided by the job's own callbacks, so the Trainer's strategies for them are off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.precision import is_deepspeed
from launcher.spec import JobSpec, Loss, Offload, Optimizer, Precision, Schedule, ShardKind

# torch.optim.AdamW(fused=True) everywhere: the foreach form holds a temporary as large as what it steps.
OPTIM = {
    Optimizer.ADAMW: "adamw_torch_fused",
    Optimizer.ADAMW_8BIT: "adamw_bnb_8bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
}
SCHEDULE = {Schedule.LINEAR: "linear", Schedule.COSINE: "cosine", Schedule.CONSTANT: "constant_with_warmup"}
COLLECTIVE_TIMEOUT_S = 1800


def training_arguments(spec: JobSpec, *, output_dir: Path, deepspeed_config: Path) -> dict[str, Any]:
    """The keyword arguments of transformers.TrainingArguments for this job.

    output_dir is where checkpoints go. deepspeed_config is the rendered file, used by ZeRO only.
    """
    train = spec.train
    return {
        "output_dir": str(output_dir),
        "num_train_epochs": train.epochs,
        "max_steps": -1 if train.max_steps is None else train.max_steps,
        "per_device_train_batch_size": spec.micro_batch,
        "per_device_eval_batch_size": spec.micro_batch,
        "gradient_accumulation_steps": spec.gradient_accumulation,
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        "lr_scheduler_type": SCHEDULE[train.schedule],
        "warmup_steps": train.warmup_ratio,  # a number below one is a share of all steps
        "max_grad_norm": train.max_grad_norm,
        "optim": OPTIM[train.optimizer],
        "seed": train.seed,
        "data_seed": train.seed,
        "dataloader_num_workers": train.dataloader_workers,
        "dataloader_multiprocessing_context": "fork" if train.dataloader_workers else None,  # see jobs.stop
        "dataloader_pin_memory": spec.device.kind == "cuda",
        "remove_unused_columns": False,
        "logging_strategy": "steps",
        "logging_steps": train.log_every_steps,
        "logging_nan_inf_filter": False,  # a loss that is not a number is reported, not averaged away
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_timeout": COLLECTIVE_TIMEOUT_S,
        **_precision(spec),
        **_loss(spec),
        **_device(spec),
        **_sharding(spec, deepspeed_config),
    }


def _precision(spec: JobSpec) -> dict[str, Any]:
    """Which automatic casting the Trainer turns on. DeepSpeed calls pure bf16 'bf16' as well; others cast nothing."""
    mixed_bf16 = spec.train.precision is Precision.BF16_MIXED
    engine_bf16 = spec.train.precision is Precision.BF16_PURE and is_deepspeed(spec.shard.kind)
    # fp32 on a GPU multiplies in TF32: the precision people mean by fp32 training since Ampere.
    tf32 = {"tf32": True} if spec.device.kind == "cuda" and _has_tf32(spec) else {}
    return {"bf16": mixed_bf16 or engine_bf16, "fp16": spec.train.precision is Precision.FP16_MIXED, **tf32}


def _loss(spec: JobSpec) -> dict[str, Any]:
    """Liger's fused linear cross entropy and none of its other kernels: the plan counts on the loss alone."""
    if spec.train.loss is not Loss.FUSED_LINEAR:
        return {}
    others = dict.fromkeys(("rope", "rms_norm", "swiglu", "cross_entropy"), False)
    return {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True, **others}}


def _has_tf32(spec: JobSpec) -> bool:
    return spec.device.compute_capability is not None and spec.device.compute_capability >= (8, 0)


def _device(spec: JobSpec) -> dict[str, Any]:
    if spec.device.kind == "cpu":
        # use_cpu with DeepSpeed too: without it, world_size is 1 and every rank trains the same data.
        return {"use_cpu": True, "ddp_backend": "gloo"}
    if spec.shard.kind is ShardKind.FSDP:
        return {"ddp_backend": "cuda:nccl,cpu:gloo"}  # norms and saves of offloaded parameters reduce on the CPU
    return {"ddp_backend": "nccl"}


def _sharding(spec: JobSpec, deepspeed_config: Path) -> dict[str, Any]:
    if spec.shard.kind is ShardKind.DDP:
        return {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": spec.shard.bucket_cap_mb}
    if spec.shard.kind is ShardKind.FSDP:
        # Gradients are reduce-scattered after every micro batch: with no_sync, FSDP2 would hold them whole between two.
        every_batch = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        return {"fsdp": True, "fsdp_config": fsdp_config(spec), "accelerator_config": every_batch}
    return {"deepspeed": str(deepspeed_config)}


def fsdp_config(spec: JobSpec) -> dict[str, Any]:
    """The FSDP2 settings. FULL_STATE_DICT, because with sharded ones save_model() writes nothing and raises nothing."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": spec.shard.reshard_after_forward,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_offload": spec.shard.offload is Offload.ALL,
        "cpu_ram_efficient_loading": spec.method.quant_type is None,  # 4-bit weights do not pass through meta
    }
