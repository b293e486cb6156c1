"""Rules about the job itself: methods, shardings, precisions, optimizers, data, and what their libraries can do."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from launcher.datafile import check_file
from launcher.errors import Problem
from launcher.models import lora_allows_dropout, lora_parameters
from launcher.precision import COMPUTE, is_deepspeed
from launcher.rules.case import Case
from launcher.spec import (
    ActivationCheckpointing,
    Attention,
    Dtype,
    Loss,
    MethodKind,
    Mode,
    Offload,
    Optimizer,
    Precision,
    Program,
    QuantType,
    ShardKind,
)


def ranks_to_shard_over(case: Case) -> Iterator[Problem]:
    """FSDP and ZeRO on one rank shard nothing; they are of use there only to offload."""
    shard = case.spec.shard
    if shard.kind is not ShardKind.DDP and case.spec.world_size == 1 and shard.offload is Offload.NONE:
        way_out = "use gpus>=2, shard=ddp, or shard.offload"
        yield Problem(field="shard", value=shard.kind, rule="on 1 rank shards nothing", way_out=way_out)


OFFLOADS = {
    ShardKind.DDP: (Offload.NONE,),
    ShardKind.FSDP: (Offload.NONE, Offload.ALL),  # torch 2.13 CPUOffloadPolicy moves parameters and states together
    ShardKind.ZERO2: (Offload.NONE, Offload.OPTIMIZER),  # deepspeed 0.19.8: offload_param is for stage 3
    ShardKind.ZERO3: tuple(Offload),
}


def offload_exists(case: Case) -> Iterator[Problem]:
    """Not every sharding can offload, and on a CPU there is nothing to offload from."""
    shard = case.spec.shard
    if shard.offload not in OFFLOADS[shard.kind]:
        way_out = f"it can {' or '.join(OFFLOADS[shard.kind])}"
        rule = f"is not possible with shard={shard.kind}"
        yield Problem(field="shard.offload", value=shard.offload, rule=rule, way_out=way_out)
    elif shard.offload is not Offload.NONE and case.spec.device.kind == "cpu":
        rule = "has no effect on CPU ranks: everything is in host RAM already"
        yield Problem(field="shard.offload", value=shard.offload, rule=rule, way_out="use shard.offload=none")


def launcher_can_start(case: Case) -> Iterator[Problem]:
    """The deepspeed program starts ZeRO jobs only."""
    if case.spec.program is Program.DEEPSPEED and not is_deepspeed(case.spec.shard.kind):
        rule = f"does not start shard={case.spec.shard.kind}"
        yield Problem(field="launcher", value="deepspeed", rule=rule, way_out="use launcher=torchrun")


def optimizer_exists(case: Case) -> Iterator[Problem]:
    """bitsandbytes' 8-bit AdamW has no DTensor strategy, no CPU offload, and pages only on CUDA."""
    train, shard = case.spec.train, case.spec.shard
    if train.optimizer is Optimizer.ADAMW:
        return
    if shard.kind is ShardKind.FSDP:
        rule = "has no sharding strategy for FSDP2's DTensors"
        yield Problem(
            field="train.optimizer", value=train.optimizer, rule=rule, way_out="use adamw, or shard=zero2 or zero3"
        )
    elif shard.offload is not Offload.NONE:
        rule = "cannot be offloaded: DeepSpeed steps offloaded states with its own AdamW"
        yield Problem(field="train.optimizer", value=train.optimizer, rule=rule, way_out="use train.optimizer=adamw")
    if train.optimizer is Optimizer.PAGED_ADAMW_8BIT and case.spec.device.kind == "cpu":
        way_out = "use adamw or adamw_8bit"
        yield Problem(field="train.optimizer", value=train.optimizer, rule="needs CUDA memory to page", way_out=way_out)


def precision_exists(case: Case) -> Iterator[Problem]:
    """bf16 needs Ampere; fp16 is a CUDA path."""
    train = case.spec.train
    field, value = "train.precision", train.precision
    if case.older_than_ampere and COMPUTE[train.precision] is Dtype.BFLOAT16:
        rule = f"has no hardware on {case.spec.device.name} (compute capability below 8.0)"
        yield Problem(field=field, value=value, rule=rule, way_out="use train.precision=fp16_mixed")
    if train.precision is Precision.FP16_MIXED and case.spec.device.kind == "cpu":
        rule = "is many times slower than fp32 on a CPU"
        yield Problem(field=field, value=value, rule=rule, way_out="use fp32 or bf16_mixed")


def attention_exists(case: Case) -> Iterator[Problem]:
    """flash-attention 2 is for half precision on Ampere and later; SDPA cannot soft-cap."""
    train, device = case.spec.train, case.spec.device
    field, value = "train.attention", train.attention
    if train.attention is Attention.FLASH_ATTENTION_2:
        if device.kind == "cpu" or case.older_than_ampere:
            rule = f"does not run on {device.name}: it needs a CUDA card of compute capability 8.0 or more"
            yield Problem(field=field, value=value, rule=rule, way_out="use train.attention=sdpa")
        if train.precision is Precision.FP32:
            yield Problem(
                field=field, value=value, rule="computes in half precision only", way_out="use sdpa, or bf16_mixed"
            )
    if train.attention is Attention.SDPA and case.spec.model.config.get("attn_logit_softcapping"):
        rule = f"ignores the soft-capped attention that {case.spec.model.name} was trained with"
        yield Problem(field=field, value=value, rule=rule, way_out="use eager or flash_attention_2")


def loss_exists(case: Case) -> Iterator[Problem]:
    """Liger's kernels are Triton: CUDA only. The chunked loss is the tokens' alone, without a router's."""
    loss = case.spec.train.loss
    if loss is Loss.FUSED_LINEAR and case.spec.device.kind == "cpu":
        rule = "is a CUDA kernel"
        yield Problem(field="train.loss", value=loss, rule=rule, way_out="use train.loss=chunked or cross_entropy")
    if loss is Loss.CHUNKED and case.spec.model.config.get("output_router_logits"):
        rule = "leaves out the router's loss that config.json asks for (output_router_logits)"
        yield Problem(field="train.loss", value=loss, rule=rule, way_out="use train.loss=cross_entropy")


def checkpointing_exists(case: Case) -> Iterator[Problem]:
    """ZeRO-3 gathers parameters inside what is recomputed, and not as it did in the forward pass; torch's selective
    checkpointing takes that for another computation and fails (torch 2.13 utils/checkpoint.py)."""
    mode = case.spec.train.activation_checkpointing
    if mode is ActivationCheckpointing.SELECTIVE and case.spec.shard.kind is ShardKind.ZERO3:
        rule = "cannot recompute what zero3 gathers on the way"
        way_out = "use train.activation_checkpointing=full, or shard=fsdp"
        yield Problem(field="train.activation_checkpointing", value=mode, rule=rule, way_out=way_out)


def optional_packages(case: Case) -> Iterator[Problem]:
    """What only some jobs need is not installed for all; a plan needs none of it."""
    train = case.spec.train
    wanted = (
        ("train.loss", train.loss, Loss.FUSED_LINEAR, "liger_kernel", "liger-kernel"),
        ("train.attention", train.attention, Attention.FLASH_ATTENTION_2, "flash_attn", "flash-attn"),
    )
    if case.mode is not Mode.RUN or case.spec.device.kind == "cpu":
        return
    for field, value, needs_it, module, package in wanted:
        if value is needs_it and importlib.util.find_spec(module) is None:
            rule = f"needs the package {package}, which is not installed"
            yield Problem(field=field, value=value, rule=rule, way_out=f"pip install {package}")


LORA_FIELDS = ("rank", "alpha", "dropout", "targets", "bias")
QUANT_FIELDS = ("quant_type", "double_quant", "compute_dtype", "storage_dtype")


def method_options(case: Case) -> Iterator[Problem]:
    """An option of another method has no effect, and one of this method is needed."""
    method = case.spec.method
    has_lora, has_quant = method.kind is not MethodKind.FULL, method.kind is MethodKind.QLORA
    for names, wanted in ((LORA_FIELDS, has_lora), (QUANT_FIELDS, has_quant)):
        for name in names:
            value = getattr(method, name)
            if value is not None and not wanted:
                rule = f"has no effect with method={method.kind}"
                yield Problem(field=f"method.{name}", value=value, rule=rule, way_out="remove it")
            if value is None and wanted:
                rule = f"is needed by method={method.kind}"
                yield Problem(field=f"method.{name}", value="null", rule=rule, way_out="give it a value")


def lora_targets(case: Case) -> Iterator[Problem]:
    """Targets are layers of the model; peft 0.21 takes no dropout where they are routers or stacked experts."""
    method = case.spec.method
    if method.targets is None or method.rank is None or method.bias is None:
        return
    try:
        lora_parameters(case.shape, method.targets, method.rank, method.bias)
    except ValueError as error:
        yield Problem(field="method.targets", value=",".join(method.targets), rule=f"is wrong: {error}")
        return
    if method.dropout and not lora_allows_dropout(case.shape, method.targets):
        rule = f"is not possible with method.targets={','.join(method.targets)} on {case.spec.model.name}"
        way_out = "use method.dropout=0, or targets without routers and experts"
        yield Problem(field="method.dropout", value=method.dropout, rule=rule, way_out=way_out)


def quantisation_dtypes(case: Case) -> Iterator[Problem]:
    """QLoRA computes in the precision's dtype; its storage must be what the sharding can split."""
    method, shard, train = case.spec.method, case.spec.shard, case.spec.train
    if method.compute_dtype is None or method.storage_dtype is None:
        return
    compute = COMPUTE[train.precision]
    if method.compute_dtype is not compute:
        rule = f"differs from the compute dtype of train.precision={train.precision}"
        way_out = f"use method.compute_dtype={compute}"
        yield Problem(field="method.compute_dtype", value=method.compute_dtype, rule=rule, way_out=way_out)
    elif (method.quant_type is QuantType.INT8) != (method.storage_dtype is Dtype.INT8):
        rule = f"is not how method.quant_type={method.quant_type} is stored"
        yield Problem(field="method.storage_dtype", value=method.storage_dtype, rule=rule, way_out="use auto")
    elif shard.kind is ShardKind.FSDP and method.storage_dtype not in (compute, Dtype.INT8):
        rule = "would be replicated on every rank under fsdp instead of sharded"
        way_out = f"use method.storage_dtype={compute} (the compute dtype)"
        yield Problem(field="method.storage_dtype", value=method.storage_dtype, rule=rule, way_out=way_out)


def eight_bit_base_exists(case: Case) -> Iterator[Problem]:
    """bitsandbytes 0.50 Linear8bitLt computes with weights that it keeps beside its parameter (state.CB, state.SCB):
    under ZeRO-3 it trains with all of them on every rank and exit code 0, under FSDP2 it fails."""
    method, shard = case.spec.method, case.spec.shard
    if method.quant_type is not QuantType.INT8:
        return
    if shard.kind in (ShardKind.FSDP, ShardKind.ZERO3):
        rule = f"cannot be sharded by {shard.kind}: bitsandbytes keeps 8-bit weights outside its parameters"
        way_out = "use method.quant_type=nf4, or shard=ddp or zero2"
        yield Problem(field="method.quant_type", value=method.quant_type, rule=rule, way_out=way_out)
    if method.double_quant:
        rule = "has no effect with method.quant_type=int8: it has no blocks whose constants could be quantised"
        yield Problem(field="method.double_quant", value=True, rule=rule, way_out="use auto")


def global_batch_divides(case: Case) -> Iterator[Problem]:
    """Every rank takes the same whole number of micro batches a step."""
    train, world_size = case.spec.train, case.spec.world_size
    if train.global_batch % world_size:
        lower = train.global_batch // world_size * world_size
        way_out = f"use {lower or world_size} or {lower + world_size}" if lower else f"use {world_size}"
        rule = f"is not a multiple of the {world_size} ranks"
        yield Problem(field="train.global_batch", value=train.global_batch, rule=rule, way_out=way_out)
    elif train.micro_batch is not None and train.global_batch % (train.micro_batch * world_size):
        per_rank = train.global_batch // world_size
        rule = f"does not divide the {per_rank} sequences of each rank (global_batch {train.global_batch})"
        divisors = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
        way_out = f"use {', '.join(map(str, divisors[:8]))} or auto"
        yield Problem(field="train.micro_batch", value=train.micro_batch, rule=rule, way_out=way_out)


def sequence_fits_model(case: Case) -> Iterator[Problem]:
    """A sequence is no longer than the positions the model was made for."""
    length, most = case.spec.train.sequence_length, case.shape.max_position_embeddings
    if length > most:
        rule = f"is longer than the {most} positions of {case.spec.model.name}"
        yield Problem(field="train.sequence_length", value=length, rule=rule, way_out=f"use {most} or less")


def data_is_there(case: Case) -> Iterator[Problem]:
    """The data files exist and hold alpaca rows; the embedded set has none."""
    data = case.spec.data
    for field, path in (("data.path", data.path), ("data.eval_path", data.eval_path)):
        if path is not None and data.name == "stdlib":
            yield Problem(field=field, value=path, rule="has no effect with data=stdlib", way_out="use data=alpaca")
        elif path is not None and not Path(path).is_file():
            yield Problem(field=field, value=path, rule="is not a file", way_out="give a .json or .jsonl file")
        elif path is not None:
            yield from (
                Problem(field=field, value=path, rule=f"{found.place} {found.rule}".strip(), way_out=found.way_out)
                for found in check_file(Path(path))
            )
    if data.name != "stdlib" and data.path is None:
        yield Problem(
            field="data.path", value="null", rule=f"is required with data={data.name}", way_out="data.path=FILE"
        )
    if data.eval_path is None and data.eval_fraction == 0:
        rule = "leaves nothing held out, so nothing could be evaluated"
        yield Problem(field="data.eval_fraction", value=0, rule=rule, way_out="use 0.05, or data.eval_path=FILE")
