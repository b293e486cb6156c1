"""What the job really makes of options that change no loss, and would be missed only by what they need."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch.utils.checkpoint import CheckpointPolicy
from transformers.integrations.bitsandbytes import Bnb4bitQuantize

import jobs.model
from jobs.model import load_model
from jobs.recompute import keep_narrow
from launcher.spec import ActivationCheckpointing, Dtype, JobSpec, Loss, MethodKind, QuantType
from tests.ranks import make_spec
from tests.tiny import make_alpaca_file, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    make_tiny_model(root / "model")
    make_alpaca_file(root / "data.json", 8)
    return root


def load(folder: Path, *, method: MethodKind = MethodKind.LORA, **train: Any) -> Any:
    return load_model(spec_of(folder, method=method, **train), device=torch.device("cpu"))


def spec_of(folder: Path, **options: Any) -> JobSpec:
    return make_spec(folder / "model", folder / "data.json", world_size=1, **options)


@pytest.mark.parametrize("method", [MethodKind.FULL, MethodKind.LORA])
def test_the_chunked_loss_gives_no_logits(folder: Path, method: MethodKind) -> None:
    ids = torch.arange(40).reshape(2, 20)
    output = load(folder, method=method, loss=Loss.CHUNKED)(input_ids=ids, labels=ids)
    assert output.logits is None
    plain = load(folder, method=method)(input_ids=ids, labels=ids)
    assert output.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)


@pytest.mark.parametrize("mode", ActivationCheckpointing)
def test_every_block_is_checkpointed_as_asked(folder: Path, mode: ActivationCheckpointing) -> None:
    layers = load(folder, activation_checkpointing=mode).get_base_model().model.layers
    assert {layer.gradient_checkpointing for layer in layers} == {mode is not ActivationCheckpointing.NONE}
    if mode is ActivationCheckpointing.NONE:
        return
    for layer in layers:
        options = layer._gradient_checkpointing_func.keywords
        assert options["use_reentrant"] is (mode is ActivationCheckpointing.REENTRANT)
        assert ("context_fn" in options) is (mode is ActivationCheckpointing.SELECTIVE)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [((64, 64), True), ((64, 32), True), ((64, 128), False), ((128, 64), False), ((4, 64), False), ((64, 4), True)],
)
def test_selective_checkpointing_keeps_narrow_products(shape: tuple[int, int], kept: bool) -> None:
    policy = keep_narrow((64, 64))
    weight = torch.empty(shape, device="meta")
    chosen = policy(None, torch.ops.aten.mm.default, torch.empty(8, shape[0], device="meta"), weight)
    assert chosen is (CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE)


def test_selective_checkpointing_keeps_what_attention_kernels_make() -> None:
    policy = keep_narrow((64, 64))
    kernels = torch.ops.aten
    for kept in (
        kernels._scaled_dot_product_flash_attention.default,
        kernels._scaled_dot_product_flash_attention_for_cpu.default,
        kernels._scaled_dot_product_efficient_attention.default,
        kernels._scaled_dot_product_cudnn_attention.default,
    ):
        assert policy(None, kept) is CheckpointPolicy.MUST_SAVE
    assert policy(None, kernels.silu.default) is CheckpointPolicy.PREFER_RECOMPUTE


def test_an_8_bit_base_is_in_8_bits(folder: Path) -> None:
    spec = spec_of(folder, method=MethodKind.QLORA)
    method = dataclasses.replace(spec.method, quant_type=QuantType.INT8, double_quant=False, storage_dtype=Dtype.INT8)
    model = load_model(dataclasses.replace(spec, method=method), device=torch.device("cpu"))
    layers = [module for module in model.modules() if isinstance(module, Linear8bitLt)]
    assert [module.weight.dtype for module in layers] == [torch.int8] * 14  # seven in each of two blocks
    assert {module.state.threshold for module in layers} == {6.0}


def test_weights_that_wait_in_host_memory_are_those_that_would_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = Bnb4bitQuantize.convert
    plain = load(folder, method=MethodKind.QLORA)
    monkeypatch.setattr(jobs.model, "waits_in_host_memory", lambda _spec: True)
    waiting = load(folder, method=MethodKind.QLORA)
    for (name, one), other in zip(plain.state_dict().items(), waiting.state_dict().values(), strict=True):
        assert one.device == other.device == torch.device("cpu"), name
        assert torch.equal(one, other), name
    states = [layer.quant_state for layer in waiting.modules() if isinstance(layer, Linear4bit)]
    assert [state is not None for state in states] == [True] * 14  # seven in each of two blocks
    assert Bnb4bitQuantize.convert is convert
