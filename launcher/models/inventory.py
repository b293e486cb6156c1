"""From a config.json to every parameter of the model, in the order of model.named_parameters().

Source: transformers 5.23.0, models/*/modeling_*.py. Since transformers 5 the experts of a layer are two 3-D
parameters, and the router is a module of its own rather than an nn.Linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from launcher.errors import InputError
from launcher.models.architectures import ARCHITECTURES, Architecture
from launcher.models.config import check_config, with_defaults
from launcher.models.shape import ModelShape, Parameter, Role


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape of the causal language model that a config.json describes; InputError names all that is wrong.

    The same shape for the same entries: it has thousands of parameters, and one process plans a model many times.
    """
    return _model_shape(msgspec.json.encode(config))


@lru_cache(maxsize=64)
def _model_shape(encoded: bytes) -> ModelShape:
    config: dict[str, Any] = msgspec.json.decode(encoded)
    problems = check_config(config)
    if problems:
        raise InputError(problems)
    model_type = config["model_type"]
    architecture = ARCHITECTURES[model_type]
    full = with_defaults(config)
    return ModelShape(
        model_type=model_type,
        hidden_size=full["hidden_size"],
        intermediate_size=full["intermediate_size"],
        num_layers=full["num_hidden_layers"],
        num_attention_heads=full["num_attention_heads"],
        num_key_value_heads=full["num_key_value_heads"],
        head_dim=full["head_dim"],
        vocab_size=full["vocab_size"],
        tie_word_embeddings=full["tie_word_embeddings"],
        max_position_embeddings=full["max_position_embeddings"],
        sliding_window=_sliding_window(full),
        attn_logit_softcapping=full.get("attn_logit_softcapping"),
        final_logit_softcapping=full.get("final_logit_softcapping"),
        supports_sdpa=architecture.supports_sdpa,
        num_experts=full.get("num_local_experts", 0),
        num_experts_per_tok=full.get("num_experts_per_tok", 0),
        moe_intermediate_size=_expert_width(architecture, full),
        parameters=tuple(_parameters(architecture, full)),
    )


def _sliding_window(full: Mapping[str, Any]) -> int | None:
    """The window in tokens if any layer uses it: Qwen asks for it with a flag, and from one layer on."""
    window: int | None = full.get("sliding_window")
    if full.get("use_sliding_window") is False:
        return None
    layer_types = full.get("layer_types")
    if layer_types is not None:
        return window if "sliding_attention" in layer_types else None
    return window if full["num_hidden_layers"] > full.get("max_window_layers", 0) else None


def _expert_width(architecture: Architecture, full: Mapping[str, Any]) -> int:
    if not architecture.is_moe:
        return 0
    width: int = full.get("moe_intermediate_size", full["intermediate_size"])
    return width


def _parameters(architecture: Architecture, full: Mapping[str, Any]) -> Iterator[Parameter]:
    vocab, hidden = full["vocab_size"], full["hidden_size"]
    yield Parameter(name="model.embed_tokens.weight", shape=(vocab, hidden), layer=None, role=Role.EMBEDDING)
    for layer in range(full["num_hidden_layers"]):
        yield from _block(architecture, full, layer)
    yield Parameter(name="model.norm.weight", shape=(hidden,), layer=None, role=Role.NORM)
    if not full["tie_word_embeddings"]:
        yield Parameter(name="lm_head.weight", shape=(vocab, hidden), layer=None, role=Role.HEAD)


def _block(architecture: Architecture, full: Mapping[str, Any], layer: int) -> Iterator[Parameter]:
    yield from _attention(architecture, full, layer)
    if architecture.is_moe and _is_sparse(full, layer):
        yield from _experts(architecture, full, layer)
    else:
        yield from _mlp(architecture, full, layer)
    for norm in architecture.norms:
        yield _norm(norm, full["hidden_size"], layer)


def _attention(architecture: Architecture, full: Mapping[str, Any], layer: int) -> Iterator[Parameter]:
    hidden, head_dim = full["hidden_size"], full["head_dim"]
    q_width, kv_width = full["num_attention_heads"] * head_dim, full["num_key_value_heads"] * head_dim
    o_bias = full.get("attention_bias", False)
    if architecture.fused:
        yield from _linear("self_attn.o_proj", q_width, hidden, o_bias, layer)
        yield from _linear("self_attn.qkv_proj", hidden, q_width + 2 * kv_width, o_bias, layer)
        return
    qkv_bias = o_bias or architecture.qkv_bias
    yield from _linear("self_attn.q_proj", hidden, q_width, qkv_bias, layer)
    yield from _linear("self_attn.k_proj", hidden, kv_width, qkv_bias, layer)
    yield from _linear("self_attn.v_proj", hidden, kv_width, qkv_bias, layer)
    yield from _linear("self_attn.o_proj", q_width, hidden, o_bias, layer)
    if architecture.qk_norm:
        yield _norm("self_attn.q_norm", head_dim, layer)
        yield _norm("self_attn.k_norm", head_dim, layer)


def _mlp(architecture: Architecture, full: Mapping[str, Any], layer: int) -> Iterator[Parameter]:
    hidden, width, bias = full["hidden_size"], full["intermediate_size"], full.get("mlp_bias", False)
    if architecture.fused:
        yield from _linear("mlp.gate_up_proj", hidden, 2 * width, bias, layer)
    else:
        yield from _linear("mlp.gate_proj", hidden, width, bias, layer)
        yield from _linear("mlp.up_proj", hidden, width, bias, layer)
    yield from _linear("mlp.down_proj", width, hidden, bias, layer)


def _is_sparse(full: Mapping[str, Any], layer: int) -> bool:
    """Whether a block of a mixture of experts has experts (modeling_qwen3_moe.py, Qwen3MoeDecoderLayer)."""
    step: int = full.get("decoder_sparse_step", 1)
    return layer not in full.get("mlp_only_layers", ()) and (layer + 1) % step == 0


def _experts(architecture: Architecture, full: Mapping[str, Any], layer: int) -> Iterator[Parameter]:
    count, hidden, width = full["num_local_experts"], full["hidden_size"], _expert_width(architecture, full)
    router = Parameter(
        name=f"model.layers.{layer}.mlp.gate.weight", shape=(count, hidden), layer=layer, role=Role.ROUTER
    )
    if architecture.router_first:
        yield router
    for name, shape in (("gate_up_proj", (count, 2 * width, hidden)), ("down_proj", (count, hidden, width))):
        yield Parameter(name=f"model.layers.{layer}.mlp.experts.{name}", shape=shape, layer=layer, role=Role.EXPERT)
    if not architecture.router_first:
        yield router


def _linear(name: str, num_inputs: int, num_outputs: int, bias: bool, layer: int) -> Iterator[Parameter]:
    prefix = f"model.layers.{layer}.{name}"
    yield Parameter(name=f"{prefix}.weight", shape=(num_outputs, num_inputs), layer=layer, role=Role.LINEAR)
    if bias:
        yield Parameter(name=f"{prefix}.bias", shape=(num_outputs,), layer=layer, role=Role.BIAS)


def _norm(name: str, width: int, layer: int) -> Parameter:
    return Parameter(name=f"model.layers.{layer}.{name}.weight", shape=(width,), layer=layer, role=Role.NORM)
