"""The table of what is refused: each refusal with its reason and its way out, and what stands beside it accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.composed import host, problems_of

A100 = host("a100-80g")
T4 = host("t4")

REFUSED: list[tuple[str, str]] = [
    # ranks
    ("shard=fsdp gpus=1", "shard=fsdp on 1 rank shards nothing: use gpus>=2, shard=ddp, or shard.offload"),
    ("shard=zero2 gpus=1", "shard=zero2 on 1 rank shards nothing: use gpus>=2, shard=ddp, or shard.offload"),
    ("shard=zero3 gpus=1", "shard=zero3 on 1 rank shards nothing: use gpus>=2, shard=ddp, or shard.offload"),
    ("gpus=0", "gpus=0 must be at least 1"),
    ("gpus=-1", "gpus=-1 must be at least 1"),
    ("gpus=9 train.global_batch=18", "gpus=9 is more than the 8 GPUs of this host: use gpus=auto, or mode=plan"),
    ("nodes=0", "nodes=0 must be at least 1"),
    ("nodes=2", "nodes=2 needs a cluster of hosts: use cluster=slurm, or cluster=hosts cluster.hostfile=FILE"),
    ("device=h100-80g", "device=h100-80g is not in this host: it has 8 x a100-80g: use device=auto, or mode=plan"),
    # sharding and launcher
    ("shard=ddp shard.offload=all", "shard.offload=all is not possible with shard=ddp: it can none"),
    (
        "shard=fsdp shard.offload=optimizer",
        "shard.offload=optimizer is not possible with shard=fsdp: it can none or all",
    ),
    ("shard=zero2 shard.offload=all", "shard.offload=all is not possible with shard=zero2: it can none or optimizer"),
    ("shard=ddp launcher=deepspeed", "launcher=deepspeed does not start shard=ddp: use launcher=torchrun"),
    ("shard=fsdp launcher=deepspeed", "launcher=deepspeed does not start shard=fsdp: use launcher=torchrun"),
    ("shard=ddp shard.overlap_comm=true", "shard.overlap_comm=True has no effect with shard=ddp"),
    ("shard=zero2 shard.bucket_cap_mb=25", "shard.bucket_cap_mb=25 has no effect with shard=zero2"),
    ("shard=zero2 shard.prefetch_bucket_size=9", "shard.prefetch_bucket_size=9 has no effect with shard=zero2"),
    # method
    ("method=full method.rank=4", "method.rank=4 has no effect with method=full: remove it"),
    (
        "method=full method.targets=all-linear",
        "method.targets=('all-linear',) has no effect with method=full: remove it",
    ),
    ("method=lora method.quant_type=nf4", "method.quant_type=nf4 has no effect with method=lora: remove it"),
    ("method=lora method.rank=null", "method.rank=null is needed by method=lora: give it a value"),
    ("method.rank=0", "method.rank=0 must be at least 1"),
    ("method.alpha=0", "method.alpha=0.0 must be more than 0"),
    ("method.dropout=1", "method.dropout=1.0 must be at least 0 and below 1"),
    ("method.bias=some", "method.bias=some is not known: choose from none, lora_only, all"),
    (
        "method=qlora shard=fsdp method.storage_dtype=uint8",
        "method.storage_dtype=uint8 would be replicated on every rank under fsdp instead of sharded: "
        "use method.storage_dtype=bfloat16 (the compute dtype)",
    ),
    (
        "method=qlora method.compute_dtype=float32",
        "method.compute_dtype=float32 differs from the compute dtype of train.precision=bf16_mixed: "
        "use method.compute_dtype=bfloat16",
    ),
    (
        "model=mixtral-8x7b method.dropout=0.1",
        "method.dropout=0.1 is not possible with method.targets=all-linear on mixtral-8x7b: "
        "use method.dropout=0, or targets without routers and experts",
    ),
    (
        "method=qlora method.quant_type=int8 shard=zero3",
        "method.quant_type=int8 cannot be sharded by zero3: bitsandbytes keeps 8-bit weights outside its parameters: "
        "use method.quant_type=nf4, or shard=ddp or zero2",
    ),
    (
        "method=qlora method.quant_type=int8 shard=fsdp",
        "method.quant_type=int8 cannot be sharded by fsdp: bitsandbytes keeps 8-bit weights outside its parameters: "
        "use method.quant_type=nf4, or shard=ddp or zero2",
    ),
    (
        "method=qlora method.quant_type=int8 method.double_quant=true",
        "method.double_quant=True has no effect with method.quant_type=int8: "
        "it has no blocks whose constants could be quantised: use auto",
    ),
    (
        "method=qlora method.quant_type=int8 method.storage_dtype=uint8",
        "method.storage_dtype=uint8 is not how method.quant_type=int8 is stored: use auto",
    ),
    (
        "method=qlora method.storage_dtype=int8",
        "method.storage_dtype=int8 is not how method.quant_type=nf4 is stored: use auto",
    ),
    # optimizer
    (
        "shard=fsdp train.optimizer=adamw_8bit",
        "train.optimizer=adamw_8bit has no sharding strategy for FSDP2's DTensors: use adamw, or shard=zero2 or zero3",
    ),
    (
        "shard=zero2 shard.offload=optimizer train.optimizer=adamw_8bit",
        "train.optimizer=adamw_8bit cannot be offloaded: DeepSpeed steps offloaded states with its own AdamW: "
        "use train.optimizer=adamw",
    ),
    # precision
    ("train.precision=bf17", "train.precision=bf17 is not known: choose from bf16_mixed, bf16_pure, fp16_mixed, fp32"),
    (
        "mode=plan train.precision=fp32 train.attention=flash_attention_2",
        "train.attention=flash_attention_2 computes in half precision only: use sdpa, or bf16_mixed",
    ),
    (
        "model=gemma2-2b train.attention=sdpa",
        "train.attention=sdpa ignores the soft-capped attention that gemma2-2b was trained with: "
        "use eager or flash_attention_2",
    ),
    # loss
    (
        "train.loss=chunked model=mixtral-8x7b +model.config.output_router_logits=true",
        "train.loss=chunked leaves out the router's loss that config.json asks for (output_router_logits): "
        "use train.loss=cross_entropy",
    ),
    # activation checkpointing
    (
        "train.activation_checkpointing=selective shard=zero3",
        "train.activation_checkpointing=selective cannot recompute what zero3 gathers on the way: "
        "use train.activation_checkpointing=full, or shard=fsdp",
    ),
    # batch and lengths
    ("train.global_batch=12", "train.global_batch=12 is not a multiple of the 8 ranks: use 8 or 16"),
    ("train.global_batch=3", "train.global_batch=3 is not a multiple of the 8 ranks: use 8"),
    ("train.global_batch=0", "train.global_batch=0 must be at least 1"),
    (
        "train.global_batch=64 train.micro_batch=3",
        "train.micro_batch=3 does not divide the 8 sequences of each rank (global_batch 64): use 1, 2, 4, 8 or auto",
    ),
    (
        "model=tinyllama-1.1b train.sequence_length=4096",
        "train.sequence_length=4096 is longer than the 2048 positions of tinyllama-1.1b: use 2048 or less",
    ),
    ("train.learning_rate=0", "train.learning_rate=0 must be more than 0"),
    ("train.epochs=0", "train.epochs=0.0 must be more than 0"),
    ("train.max_steps=0", "train.max_steps=0 must be at least 1"),
    ("train.warmup_ratio=1", "train.warmup_ratio=1.0 must be at least 0 and below 1"),
    # data and model
    ("data=alpaca", "data.path=null is required with data=alpaca: data.path=FILE"),
    (
        "data=alpaca data.path=/nowhere/rows.json",
        "data.path=/nowhere/rows.json is not a file: give a .json or .jsonl file",
    ),
    ("data.path=/nowhere/rows.json", "data.path=/nowhere/rows.json has no effect with data=stdlib: use data=alpaca"),
    (
        "data.eval_fraction=0",
        "data.eval_fraction=0 leaves nothing held out, so nothing could be evaluated: use 0.05, or data.eval_path=FILE",
    ),
    ("model=path", "model.path=null is required with model=path: model.path=DIR, a folder with config.json"),
    ("model.path=/tmp", "model.path=/tmp has no effect with model=smollm2-135m: use model=path"),
    ("fit=maybe", "fit=maybe is not known: choose from refuse, warn, auto"),
    ("mode=go", "mode=go is not known: choose from run, plan, render"),
]


@pytest.mark.parametrize(("overrides", "said"), REFUSED, ids=[overrides for overrides, _ in REFUSED])
def test_refused_on_eight_a100(overrides: str, said: str) -> None:
    assert problems_of(*overrides.split(), on=A100) == [said]


ON_T4 = [
    (
        "train.precision=bf16_mixed",
        "train.precision=bf16_mixed has no hardware on t4 (compute capability below 8.0): "
        "use train.precision=fp16_mixed",
    ),
    (
        "mode=plan train.attention=flash_attention_2",
        "train.attention=flash_attention_2 does not run on t4: it needs a CUDA card of compute capability 8.0 or more: "
        "use train.attention=sdpa",
    ),
]


@pytest.mark.parametrize(("overrides", "said"), ON_T4)
def test_refused_on_t4(overrides: str, said: str) -> None:
    assert problems_of(*overrides.split(), on=T4) == [said]
    assert problems_of(*overrides.split(), on=A100) == []


ON_CPU = [
    ("device=a100-80g", "device=a100-80g is not in this host: it has no GPU: use device=cpu, or mode=plan"),
    (
        "gpus=8 train.global_batch=16",
        "gpus=8 is more than this host can run: it has no GPU for it and 2 cores: "
        "use gpus=2, or mode=plan device=NAME for a host with GPUs",
    ),
    (
        "shard=zero3 shard.offload=all",
        "shard.offload=all has no effect on CPU ranks: everything is in host RAM already: use shard.offload=none",
    ),
    (
        "train.precision=fp16_mixed",
        "train.precision=fp16_mixed is many times slower than fp32 on a CPU: use fp32 or bf16_mixed",
    ),
    ("train.loss=fused_linear", "train.loss=fused_linear is a CUDA kernel: use train.loss=chunked or cross_entropy"),
    (
        "train.optimizer=paged_adamw_8bit",
        "train.optimizer=paged_adamw_8bit needs CUDA memory to page: use adamw or adamw_8bit",
    ),
    (
        "train.attention=flash_attention_2 train.precision=bf16_mixed",
        "train.attention=flash_attention_2 does not run on cpu: "
        "it needs a CUDA card of compute capability 8.0 or more: use train.attention=sdpa",
    ),
]


@pytest.mark.parametrize(("overrides", "said"), ON_CPU)
def test_refused_without_a_gpu(overrides: str, said: str) -> None:
    assert problems_of(*overrides.split()) == [said]


ACCEPTED = [
    "",
    "shard=zero3",
    "shard=ddp gpus=1",
    "shard=fsdp gpus=1 shard.offload=all",
    "shard=zero2 gpus=1 shard.offload=optimizer",
    "shard=zero3 shard.offload=all launcher=deepspeed",
    "shard=zero3 train.optimizer=adamw_8bit",
    "shard=ddp train.optimizer=paged_adamw_8bit",
    "shard=fsdp train.precision=bf16_pure",
    "shard=zero2 train.precision=bf16_pure",
    "method=qlora shard=fsdp",
    "method=qlora method.quant_type=int8 shard=zero2",
    "method=qlora method.quant_type=fp4 method.double_quant=false",
    "method=qlora shard=zero3 train.precision=fp32",
    "model=gemma2-2b",
    "model=mixtral-8x7b method.dropout=0.1 method.targets=[q_proj,v_proj]",
    "mode=plan model=gemma2-2b train.attention=flash_attention_2",
    "mode=plan train.loss=fused_linear train.attention=flash_attention_2",
    "train.loss=chunked model=gemma2-2b",
    "train.activation_checkpointing=selective shard=fsdp",
    "train.activation_checkpointing=reentrant shard=zero3",
    "mode=plan device=h100-80g gpus=64 train.global_batch=64",
    "mode=plan cluster=slurm nodes=2 gpus=8 device=t4 train.precision=fp32",
    "train.global_batch=64 train.micro_batch=4",
]


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_accepted_on_eight_a100(overrides: str) -> None:
    assert problems_of(*overrides.split(), on=A100) == []


@pytest.mark.parametrize(
    ("overrides", "package"),
    [("train.loss=fused_linear", "liger-kernel"), ("train.attention=flash_attention_2", "flash-attn")],
)
def test_a_run_needs_the_package_that_an_option_names(overrides: str, package: str) -> None:
    (found,) = problems_of(overrides, on=A100)
    assert found.endswith(f"needs the package {package}, which is not installed: pip install {package}")
    assert problems_of(overrides, "mode=plan", on=A100) == []


def test_all_problems_are_reported_together() -> None:
    found = problems_of("gpus=0", "method.rank=0", "train.precision=x", "data=alpaca", "fit=maybe", "shard.offload=all")
    assert len(found) == 6


def test_a_field_already_reported_breaks_no_further_rule() -> None:
    assert problems_of("shard=fsdp", "gpus=0", on=A100)[:1] == ["gpus=0 must be at least 1"]


def test_a_broken_data_file_is_named_with_its_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"\n')
    (found,) = problems_of("data=alpaca", f"data.path={rows}")
    assert found.startswith(f"data.path={rows} line 2 ")


def test_interpolations_are_refused_wherever_they_come_from() -> None:
    found = problems_of("runs_dir='${oc.env:HOME}'")
    assert found == [
        "runs_dir=${oc.env:HOME} is an interpolation; values are taken as they stand: write the value itself"
    ]
