"""What is quantised in a model, against bitsandbytes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from launcher.models import model_shape, quantised_parameters
from tests.architectures import ONE_OF_EACH, build, load_in_4_bit, tiny_config


@pytest.mark.parametrize("name", ["llama-tied", *ONE_OF_EACH])
def test_quantised_parameters_are_those_of_a_real_4_bit_load(name: str, tmp_path: Path) -> None:
    model = load_in_4_bit(name, tmp_path)
    shape = model_shape(tiny_config(name))
    really = [(n, tuple(p.quant_state.shape)) for n, p in model.named_parameters() if p.dtype is torch.uint8]
    assert really == [(p.name, p.shape) for p in quantised_parameters(shape)]
    assert [n for n, _ in model.named_parameters()] == [p.name for p in shape.parameters]


@pytest.mark.parametrize("name", ["llama-tied", "mixtral"])
def test_quantised_parameters_are_those_of_a_real_8_bit_load(name: str, tmp_path: Path) -> None:
    build(tiny_config(name), "cpu").save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    really = [(n, tuple(p.shape), p.SCB.shape) for n, p in model.named_parameters() if p.dtype is torch.int8]
    planned = quantised_parameters(model_shape(tiny_config(name)))
    assert really == [(p.name, p.shape, (p.shape[0],)) for p in planned]
