"""What `auto` becomes, and that every file under conf/ composes into a job that survives JSON."""

from __future__ import annotations

import dataclasses
import re

import msgspec
import pytest

from launcher.options import config_groups
from launcher.paths import conf_dir
from launcher.schema import JobConf
from launcher.spec import (
    Attention,
    DataSpec,
    Dtype,
    JobSpec,
    MethodSpec,
    Precision,
    ShardSpec,
    TrainSpec,
    to_json,
)
from launcher.units import GIB
from tests.composed import host, problems_of, spec_of

GROUPS = config_groups(conf_dir())
NEEDS = {"data=alpaca": ["data.path={rows}"], "model=path": ["model.path={model}"], "shard=fsdp": ["gpus=2"]}


def files(*groups: str) -> list[str]:
    return [f"{group}={name}" for group in groups for name in GROUPS[group]]


@pytest.mark.parametrize(
    "override", files("method", "shard", "train", "cluster", "tracker", "experiment", "model", "device")
)
def test_every_file_composes_and_survives_json(override: str) -> None:
    if override == "model=path":
        pytest.skip("needs a directory: test_model_shapes.py")
    if override == "device=auto":
        override = "device=cpu"
    spec = spec_of(override, "gpus=2", "mode=plan")
    assert msgspec.json.decode(to_json(spec), type=JobSpec) == spec


def test_an_alpaca_file_composes(tmp_path: object) -> None:
    rows = tmp_path / "rows.json"  # type: ignore[operator]
    rows.write_text('[{"instruction": "a", "input": "", "output": "b"}]')
    assert spec_of("data=alpaca", f"data.path={rows}").data.path == str(rows)


def test_without_a_gpu_auto_means_two_cpu_ranks_in_fp32() -> None:
    spec = spec_of(on=host(ram_bytes=24 * GIB))
    assert (spec.device.kind, spec.gpus_per_node, spec.train.precision) == ("cpu", 2, Precision.FP32)
    assert spec.device.memory_bytes == 12 * GIB


def test_with_gpus_auto_means_all_of_them_in_bf16() -> None:
    spec = spec_of(on=host("a100-80g", num_gpus=4))
    assert (spec.device.name, spec.gpus_per_node, spec.train.precision) == ("a100-80g", 4, Precision.BF16_MIXED)


def test_before_ampere_auto_means_fp16() -> None:
    assert spec_of(on=host("t4")).train.precision is Precision.FP16_MIXED


def test_a_plan_without_a_gpu_names_no_card() -> None:
    spec = spec_of("mode=plan", "gpus=8", "shard=zero3")
    assert (spec.device.name, spec.device.kind, spec.device.memory_bytes) == ("any", "cuda", None)
    assert (spec.gpus_per_node, spec.train.precision) == (8, Precision.BF16_MIXED)


def test_device_cpu_plans_for_the_cpu() -> None:
    assert spec_of("mode=plan", "device=cpu", "gpus=2").device.kind == "cpu"


def test_learning_rate_follows_the_method() -> None:
    rates = [spec_of(f"method={method}").train.learning_rate for method in ("full", "lora", "qlora")]
    assert rates == [2e-5, 2e-4, 2e-4]
    assert spec_of("train.learning_rate=1").train.learning_rate == 1.0


def test_zero_sizes_are_numbers_from_the_model() -> None:
    shard = spec_of("model=llama3-8b", "shard=zero3", "mode=plan", "gpus=8").shard
    assert shard.reduce_bucket_size == 4096 * 4096
    assert shard.prefetch_bucket_size == int(0.9 * 4096 * 4096)
    assert shard.param_persistence_threshold == 40960
    assert shard.overlap_comm is True
    assert shard.bucket_cap_mb is None


def test_sizes_of_deepspeeds_own_are_those_that_the_files_name() -> None:
    """Where a DeepSpeed file leaves a key out, rather than saying "auto"."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    own = DeepSpeedZeroConfig(stage=3)
    for stage in ("zero2", "zero3"):
        text = (conf_dir() / "shard" / f"{stage}.yaml").read_text(encoding="utf-8")
        named = dict(re.findall(r"^(\w+): auto # .*DeepSpeed's own: (\d+)$", text, re.MULTILINE))
        assert named
        assert {name: getattr(own, name) for name in named} == {name: int(size) for name, size in named.items()}


def test_a_size_given_is_kept() -> None:
    shard = spec_of("shard=zero2", "shard.reduce_bucket_size=500_000_000", "shard.overlap_comm=true").shard
    assert (shard.reduce_bucket_size, shard.overlap_comm) == (500_000_000, True)


def test_qlora_storage_is_what_the_sharding_can_split() -> None:
    on = host("a100-80g")
    storage = {
        shard: spec_of("method=qlora", f"shard={shard}", on=on).method.storage_dtype for shard in GROUPS["shard"]
    }
    assert storage == {"ddp": Dtype.UINT8, "fsdp": Dtype.BFLOAT16, "zero2": Dtype.UINT8, "zero3": Dtype.UINT8}


def test_soft_capped_models_use_eager_attention() -> None:
    assert spec_of("model=gemma2-2b").train.attention is Attention.EAGER
    assert spec_of("model=llama3-8b").train.attention is Attention.SDPA


def test_targets_by_name() -> None:
    assert spec_of("method.targets=[q_proj,v_proj]").method.targets == ("q_proj", "v_proj")
    assert "method.targets" in problems_of("method.targets=[q_proj,nope]")[0]


@pytest.mark.parametrize(
    ("group", "frozen"), [("method", MethodSpec), ("shard", ShardSpec), ("data", DataSpec), ("train", TrainSpec)]
)
def test_schema_and_spec_have_the_same_fields(group: str, frozen: type) -> None:
    schema = {field.name for field in dataclasses.fields(getattr(JobConf(), group))}
    spec = {field.name for field in dataclasses.fields(frozen)}
    assert schema - {"name"} == spec - {"kind", "name"}
