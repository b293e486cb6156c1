"""What transformers knows of each supported model type: config.json defaults and how a block is built.

Source: transformers 5.23.0, models/*/configuration_*.py (defaults) and modeling_*.py (blocks). The tests compare
both with the installed package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA2_NORMS = (*PRE_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model type. defaults holds the config.json entries that matter, each with transformers' default.

    fused: q, k, v are one linear layer, and gate, up another. qkv_bias: q, k, v have biases whatever the config says.
    expert_names: the names that peft knows the gate, up and down projections of experts by; empty for dense models.
    supports_sdpa: whether transformers runs it with torch's scaled_dot_product_attention.
    """

    defaults: Mapping[str, Any]
    norms: tuple[str, ...] = PRE_NORMS
    fused: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    router_first: bool = False
    expert_names: tuple[str, ...] = ()
    supports_sdpa: bool = True

    @property
    def is_moe(self) -> bool:
        """Whether it has experts."""
        return bool(self.expert_names)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "vocab_size": 32000,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
        },
    ),
    "mistral": Architecture(
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": None,
            "vocab_size": 32000,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
            "sliding_window": 4096,
        },
    ),
    "mixtral": Architecture(
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": None,
            "vocab_size": 32000,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "output_router_logits": False,
        },
        router_first=True,
        expert_names=("w1", "w3", "w2"),
    ),
    "qwen2": Architecture(
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": None,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        },
        qkv_bias=True,
    ),
    "qwen3": Architecture(
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        },
        qk_norm=True,
    ),
    "qwen3_moe": Architecture(
        defaults={
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": None,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
            "mlp_only_layers": (),
            "output_router_logits": False,
        },
        qk_norm=True,
        expert_names=("gate_proj", "up_proj", "down_proj"),
    ),
    "gemma2": Architecture(
        defaults={
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "sliding_window": 4096,
            "layer_types": None,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        norms=GEMMA2_NORMS,
        supports_sdpa=False,  # softcapping; modeling_gemma2.py sets _supports_sdpa = False
    ),
    "phi3": Architecture(
        defaults={
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
            "sliding_window": None,
        },
        fused=True,
    ),
}
