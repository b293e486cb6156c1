"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again.

full keeps a block's input; selective, besides, what is dear to compute and narrow: the attention kernel's result, and
those of its projections. The MLP's wide products are made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from launcher.spec import ActivationCheckpointing

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
KERNELS = ("_scaled_dot_product_", "_flash_attn_forward", "_flash_attn_varlen_forward", "gemm_4bit")


def checkpoint_activations(model: Any, mode: ActivationCheckpointing) -> None:
    """Turn on checkpointing of every block of transformers' own model, before peft wraps it."""
    if mode is ActivationCheckpointing.NONE:
        return
    # Non-reentrant unless asked for: frozen inputs need no gradient, and FSDP2 and DDP need no special case.
    options: dict[str, Any] = {"use_reentrant": mode is ActivationCheckpointing.REENTRANT}
    if mode is ActivationCheckpointing.SELECTIVE:
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        policy = keep_narrow((config.hidden_size, config.num_attention_heads * head_dim))
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    model.activation_checkpointing_enable(options)


def keep_narrow(widths: tuple[int, int]) -> Callable[..., CheckpointPolicy]:
    """The policy of selective checkpointing. widths: elements of the residual stream, and of all query heads.

    Not kept are the MLP's wide products, what a wide tensor is multiplied down to (nothing in the block reads it
    again), and what an adapter's second matrix makes of a few elements (it is cheap).
    """

    def policy(context: Any, op: Any, *args: Any, **_: Any) -> CheckpointPolicy:
        if op in PRODUCTS:
            num_inputs, num_outputs = args[-1].shape
            keep = num_inputs in widths and num_outputs <= max(widths)
        else:
            keep = any(kernel in op.name() for kernel in KERNELS)
        del context
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return policy
