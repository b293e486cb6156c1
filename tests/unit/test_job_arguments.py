"""The Trainer's arguments: what each precision, sharding and device turns on, and that the Trainer takes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jobs.arguments import training_arguments
from launcher.spec import JobSpec, Loss, Offload, Optimizer, Precision, Schedule, ShardKind
from tests.launching import CPU, H100, make_spec


def arguments(spec: JobSpec) -> dict[str, Any]:
    return training_arguments(spec, output_dir=Path("/run/checkpoints"), deepspeed_config=Path("/run/deepspeed.json"))


def with_train(spec: JobSpec, **changes: Any) -> JobSpec:
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, **changes))


@pytest.mark.parametrize("shard", ShardKind)
@pytest.mark.parametrize("precision", Precision)
def test_only_mixed_precision_casts_by_itself(precision: Precision, shard: ShardKind) -> None:
    made = arguments(with_train(make_spec(shard=shard), precision=precision))
    engine = shard in (ShardKind.ZERO2, ShardKind.ZERO3)
    pure = precision is Precision.BF16_PURE
    assert made["bf16"] is (precision is Precision.BF16_MIXED or (pure and engine))
    assert made["fp16"] is (precision is Precision.FP16_MIXED)


def test_each_sharding_has_its_own_settings() -> None:
    ddp, fsdp, zero3 = (arguments(make_spec(shard=s)) for s in (ShardKind.DDP, ShardKind.FSDP, ShardKind.ZERO3))
    assert ddp["ddp_find_unused_parameters"] is False
    assert "fsdp" not in ddp
    assert "deepspeed" not in ddp
    assert fsdp["fsdp_config"] == {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_offload": False,
        "cpu_ram_efficient_loading": True,
    }
    assert fsdp["accelerator_config"] == {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    assert zero3["deepspeed"] == "/run/deepspeed.json"


def test_fsdp_offloads_everything_or_nothing() -> None:
    spec = make_spec(shard=ShardKind.FSDP)
    offloaded = dataclasses.replace(spec, shard=dataclasses.replace(spec.shard, offload=Offload.ALL))
    assert arguments(offloaded)["fsdp_config"]["cpu_offload"] is True


@pytest.mark.parametrize("shard", ShardKind)
def test_cpu_ranks_say_so_under_every_sharding(shard: ShardKind) -> None:
    made = arguments(dataclasses.replace(make_spec(shard=shard), device=CPU))
    assert (made["use_cpu"], made["ddp_backend"], made["dataloader_pin_memory"]) == (True, "gloo", False)
    assert "tf32" not in made


@pytest.mark.parametrize("shard", ShardKind)
def test_gpus_use_nccl(shard: ShardKind) -> None:
    made = arguments(dataclasses.replace(make_spec(shard=shard), device=H100))
    assert made["ddp_backend"] == ("cuda:nccl,cpu:gloo" if shard is ShardKind.FSDP else "nccl")
    assert "use_cpu" not in made
    assert made["tf32"] is True


def test_tf32_only_where_the_card_has_it() -> None:
    turing = dataclasses.replace(H100, name="t4", compute_capability=(7, 5))
    assert "tf32" not in arguments(dataclasses.replace(make_spec(), device=turing))


def test_the_global_batch_stays() -> None:
    spec = with_train(make_spec(), global_batch=16, micro_batch=2)
    made = arguments(spec)
    ranks = spec.world_size
    assert made["per_device_train_batch_size"] * made["gradient_accumulation_steps"] * ranks == 16


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (Optimizer.ADAMW, "adamw_torch_fused"),
        (Optimizer.ADAMW_8BIT, "adamw_bnb_8bit"),
        (Optimizer.PAGED_ADAMW_8BIT, "paged_adamw_8bit"),
    ],
)
def test_optimizers_by_the_trainers_names(optimizer: Optimizer, name: str) -> None:
    from transformers.training_args import OptimizerNames

    assert arguments(with_train(make_spec(), optimizer=optimizer))["optim"] == name
    assert OptimizerNames(name).value == name


@pytest.mark.parametrize("schedule", Schedule)
def test_every_schedule_warms_up(schedule: Schedule) -> None:
    from transformers import SchedulerType

    made = arguments(with_train(make_spec(), schedule=schedule, warmup_ratio=0.25))
    assert made["warmup_steps"] == 0.25
    assert SchedulerType(made["lr_scheduler_type"]) is not SchedulerType.CONSTANT


def test_the_fused_loss_brings_no_other_kernel() -> None:
    made = arguments(with_train(make_spec(), loss=Loss.FUSED_LINEAR))
    assert made["use_liger_kernel"] is True
    assert [name for name, on in made["liger_kernel_config"].items() if on] == ["fused_linear_cross_entropy"]
    assert "use_liger_kernel" not in arguments(make_spec())


def test_the_trainer_takes_every_argument() -> None:
    from transformers import TrainingArguments

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for shard in ShardKind:
        for device in (CPU, H100):
            spec = dataclasses.replace(make_spec(shard=shard), device=device)
            assert set(arguments(with_train(spec, loss=Loss.FUSED_LINEAR))) <= known
