"""Tiny models of every architecture that is supported, built by transformers, and the shapes of what is in them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from launcher.models import ModelShape

TINY_WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
MIXTRAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Every branch of every architecture: biases, head widths, tied heads, blocks without experts.
TINY: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 32},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral"},
    "mistral-head-dim": {"model_type": "mistral", "head_dim": 32},
    "mixtral": {"model_type": "mixtral", **MIXTRAL_EXPERTS},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-biases": {"model_type": "qwen3", "attention_bias": True},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 32, **QWEN_EXPERTS},
    "qwen3_moe-some-dense": {"model_type": "qwen3_moe", "mlp_only_layers": [0], **QWEN_EXPERTS},
    "qwen3_moe-every-second": {"model_type": "qwen3_moe", "decoder_sparse_step": 2, **QWEN_EXPERTS},
    "gemma2": {"model_type": "gemma2", "head_dim": 32},
    "gemma2-biases": {"model_type": "gemma2", "head_dim": 16, "attention_bias": True},
    "phi3": {"model_type": "phi3"},
}
ONE_OF_EACH = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "phi3")
NamedShapes = list[tuple[str, tuple[int, ...]]]


def tiny_config(name: str) -> dict[str, Any]:
    return {**TINY_WIDTHS, **TINY[name]}


def build(config: dict[str, Any], device: str) -> PreTrainedModel:
    given = {key: value for key, value in config.items() if key not in ("model_type", "dtype")}
    auto_config = AutoConfig.for_model(
        config["model_type"], **given, pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype="float32"
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(auto_config)


def named_shapes(shape: ModelShape) -> NamedShapes:
    return [(parameter.name, parameter.shape) for parameter in shape.parameters]


def real_shapes(model: torch.nn.Module) -> NamedShapes:
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def trained_shapes(model: torch.nn.Module) -> NamedShapes:
    trained = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    base_names = [(name, base_name(name), shape) for name, shape in trained]
    # The base's own biases come last in lora_parameters.
    adapters = [(name, shape) for name, _, shape in base_names if ".lora_" in name]
    return adapters + [(base, shape) for name, base, shape in base_names if ".lora_" not in name]


def base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def load_in_4_bit(name: str, folder: Path) -> PreTrainedModel:
    build(tiny_config(name), "cpu").save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes misses an optional kernel package
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.bfloat16
        )
