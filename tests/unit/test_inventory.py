"""What the planner counts, tensor by tensor, against what the job's own code really loads, quantises and adapts."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jobs.model import load_model
from launcher.planner.inventory import State
from launcher.planner.workload import Workload
from launcher.spec import JobSpec
from tests.architectures import build, tiny_config
from tests.planner_jobs import estimate, job

ARCHITECTURES = (
    "llama",
    "llama-tied",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_moe-some-dense",
    "gemma2",
    "phi3",
)
Tensors = Counter[tuple[str, tuple[int, ...], str, torch.dtype]]


def planned(work: Workload) -> Tensors:
    """Name inside its block, whole shape, state and dtype of every tensor, with how often it occurs."""
    found: Tensors = Counter()
    for parameter, count in work.inventory.counted():
        quantised = parameter.state is State.QUANTISED
        dtype = torch.uint8 if quantised else getattr(torch, work.stored_dtype(parameter.state).value)
        found[parameter.name, parameter.shape, parameter.state.value, dtype] += count
    return found


def real(model: nn.Module) -> Tensors:
    """The same of a model in memory."""
    found: Tensors = Counter()
    for name, parameter in model.named_parameters():
        shape, state = tuple(parameter.shape), State.FROZEN
        if parameter.dtype is torch.uint8:
            shape, state = tuple(parameter.quant_state.shape), State.QUANTISED
        elif ".lora_" in name:
            state = State.ADAPTER
        elif parameter.requires_grad:
            state = State.TRAINED
        found[name_in_block(name), shape, state.value, parameter.dtype] += 1
    return found


def name_in_block(name: str) -> str:
    """'self_attn.q_proj.weight' of whatever layer, however often peft wrapped it."""
    if ".lora_" not in name:
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
    _, mark, inside = name.partition(".layers.")
    return inside.partition(".")[2] if mark else name


def loaded(spec: JobSpec, folder: Path) -> Any:
    """The job's model on a CPU, from a checkpoint of random weights."""
    build(spec.model.config, "cpu").save_pretrained(folder)
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, path=str(folder)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes misses an optional kernel package
        return load_model(spec, device=torch.device("cpu"))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor(name: str, method: str, tmp_path: Path) -> None:
    attention = "eager" if name == "gemma2" else "sdpa"
    spec = job(tiny_config(name), method=method, device="cpu", sequence_length=32, attention=attention, rank=4)
    assert planned(estimate(spec).work) == real(loaded(spec, tmp_path))


@pytest.mark.parametrize("precision", ["fp32", "bf16_pure"])
def test_dtypes_of_other_precisions(precision: str, tmp_path: Path) -> None:
    spec = job(tiny_config("llama"), method="lora", device="cpu", sequence_length=32, precision=precision, rank=4)
    assert planned(estimate(spec).work) == real(loaded(spec, tmp_path))


def test_experts_stay_as_they_are_under_4_bits(tmp_path: Path) -> None:
    """bitsandbytes replaces linear layers, and stacked experts are none; peft adapts them, and the router, too."""
    spec = job(tiny_config("mixtral"), method="qlora", device="cpu", sequence_length=32, rank=4)
    tensors = real(loaded(spec, tmp_path))
    experts = [key for key in tensors if key[0].startswith("mlp.experts.") and ".lora_" not in key[0]]
    assert {(state, dtype) for _, _, state, dtype in experts} == {("frozen", torch.bfloat16)}
    adapted = {name.partition(".lora_")[0] for name, _, state, _ in tensors if state == "adapter"}
    assert {"mlp.gate", "mlp.experts", "mlp.experts.base_layer"} <= adapted
