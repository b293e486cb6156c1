"""Ways to need less memory that leave the training as it is, on two real ranks: the losses show that they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from launcher.runs.layout import RunFolder
from launcher.spec import ActivationCheckpointing, Dtype, JobSpec, Loss, MethodKind, QuantType, ShardKind
from tests.ranks import log_text, losses, make_spec, metrics, run_ranks, started, write_run
from tests.tiny import make_alpaca_file, make_tiny_model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

HEAD_TOO = ("q_proj", "v_proj", "lm_head")
EQUAL = 5e-6  # measured: 5e-7
NUM_QUANTISED = 73_728  # elements in the linear layers of the tiny model's two blocks
NUM_ADAPTER = 8_192


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunFolder]]:
    """Runs a job once and keeps it: four steps of packed sequences, two chunks of tokens a micro batch."""
    root = tmp_path_factory.mktemp("options")
    model, data = make_tiny_model(root / "model"), make_alpaca_file(root / "data.json", 80)
    done: dict[str, RunFolder] = {}

    def run(name: str, **changes: Any) -> RunFolder:
        if name not in done:
            spec = spec_of(model, data, **changes)
            done[name] = write_run(root / name, spec)
            assert run_ranks(done[name], spec) == 0, log_text(done[name])
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITLAUNCH_CACHE", str(root / "cache"))
        yield run


def spec_of(model: Path, data: Path, *, method_changes: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    sizes = {"packing": True, "sequence_length": 128, "micro_batch": 4, "global_batch": 16, "max_steps": 4}
    spec = make_spec(model, data, **{**sizes, **changes})
    return dataclasses.replace(spec, method=dataclasses.replace(spec.method, **(method_changes or {})))


def assert_trains_alike(run: RunFolder, reference: RunFolder) -> None:
    assert losses(run) == pytest.approx(losses(reference), abs=EQUAL)
    evaluated = [[line["loss"] for line in metrics(one, "eval")] for one in (run, reference)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=EQUAL)


@pytest.mark.parametrize(
    ("shard", "checkpointing"),
    [
        (ShardKind.FSDP, ActivationCheckpointing.SELECTIVE),
        (ShardKind.ZERO3, ActivationCheckpointing.REENTRANT),
    ],
)
def test_chunked_loss_and_checkpointing_change_no_loss(
    run_of: Callable[..., RunFolder], shard: ShardKind, checkpointing: ActivationCheckpointing
) -> None:
    plain = run_of("plain", method=MethodKind.FULL)
    run = run_of(
        f"chunked-{shard}",
        method=MethodKind.FULL,
        shard=shard,
        loss=Loss.CHUNKED,
        activation_checkpointing=checkpointing,
    )
    assert_trains_alike(run, plain)


def test_an_adapted_head_trains_by_the_chunked_loss_and_is_saved_alone(run_of: Callable[..., RunFolder]) -> None:
    adapted = {"method": MethodKind.LORA, "method_changes": {"targets": HEAD_TOO}}
    plain = run_of("head", **adapted)
    run = run_of("head-chunked", shard=ShardKind.ZERO3, loss=Loss.CHUNKED, **adapted)
    assert_trains_alike(run, plain)
    for one in (plain, run):
        saved = load_file(one.result / "adapter_model.safetensors")
        assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in saved} == set(HEAD_TOO)
        assert all(".lora_" in name for name in saved)


def test_an_8_bit_base(run_of: Callable[..., RunFolder]) -> None:
    eight = {"quant_type": QuantType.INT8, "double_quant": False, "storage_dtype": Dtype.INT8}
    common = {"method": MethodKind.QLORA, "method_changes": eight}
    plain = run_of("int8", **common)
    run = run_of(
        "int8-zero2",
        shard=ShardKind.ZERO2,
        loss=Loss.CHUNKED,
        activation_checkpointing=ActivationCheckpointing.REENTRANT,
        **common,
    )
    assert_trains_alike(run, plain)
    for one in (plain, run):
        checks = started(one).checks
        quantised = checks["parameters"]["quantised"]
        assert quantised["dtypes"] == {"int8": NUM_QUANTISED}
        assert [rank["quantised"] for rank in checks["local_elements_by_rank"]] == [NUM_QUANTISED] * 2
        assert [rank["trained"] for rank in checks["local_elements_by_rank"]] == [NUM_ADAPTER] * 2
