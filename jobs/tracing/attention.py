"""The kernel that torch.nn.functional.scaled_dot_product_attention takes on the planned GPU, called by its own name.

Without a GPU torch would take the math kernel. The choice is torch 2.13's (aten/src/ATen/native/transformers/cuda/
sdp_utils.cpp, use_flash_attention and use_mem_efficient_attention, in the default order flash, efficient, math): flash
for half precision without a mask on compute capability 8.0 or later, memory-efficient otherwise. cuDNN's kernel comes
first only on request (priority order of _fused_sdp_choice_cuda in 2.13).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by

from jobs.tracing.target import Target

aten = torch.ops.aten

HALF = (torch.float16, torch.bfloat16)
LARGEST_FLASH_HEAD = 256
FLASH_HEAD_MULTIPLE = 8
FLASH_CAPABILITY = (8, 0)


def install(target: Target) -> None:
    """Choose as CUDA would for tensors on cuda; others are left to torch."""
    original = F.scaled_dot_product_attention

    def scaled_dot_product_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if query.device.type != "cuda":
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        query, key, value = _autocast(query, key, value)
        if use_flash(query, value, attn_mask, target.capability):
            return _flash(query, key, value, dropout_p, is_causal, scale)
        if use_efficient(query, key, enable_gqa):
            return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
        return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
        )[0]

    F.scaled_dot_product_attention = scaled_dot_product_attention  # type: ignore[assignment]


def use_flash(query: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, capability: tuple[int, int]) -> bool:
    """Whether the flash kernel can do it: it takes grouped keys and values as they are."""
    head = query.shape[-1]
    return (
        mask is None
        and query.dtype in HALF
        and head == value.shape[-1]
        and head <= LARGEST_FLASH_HEAD
        and capability >= FLASH_CAPABILITY
    )


def use_efficient(query: torch.Tensor, key: torch.Tensor, enable_gqa: bool) -> bool:
    """Whether the memory-efficient kernel can do it: it takes as many key heads as query heads only."""
    return not (enable_gqa and query.shape[1] != key.shape[1])


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """scaled_dot_product_attention is on autocast's list of half-precision operations (torch/amp docs)."""
    if not torch.is_autocast_enabled("cuda"):
        return tensors
    dtype = torch.get_autocast_dtype("cuda")
    return tuple(tensor.to(dtype) if tensor.dtype == torch.float32 else tensor for tensor in tensors)


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, causal: bool, scale: float | None
) -> torch.Tensor:
    head = query.shape[-1]
    missing = -head % FLASH_HEAD_MULTIPLE
    scale = 1 / math.sqrt(head) if scale is None else scale
    if missing:  # pad_last_dim in attention.cpp
        query, key, value = (F.pad(tensor, (0, missing)) for tensor in (query, key, value))
    output = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
    return output[..., :head] if missing else output  # type: ignore[no-any-return]


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if mask is not None:
        if mask.dtype == torch.bool:  # convert_boolean_attn_mask
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -math.inf)
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    arguments: tuple[Any, ...] = (query, key, value, mask, needs_gradient, dropout, causal)
    return aten._scaled_dot_product_efficient_attention(*arguments, scale=scale)[0]  # type: ignore[no-any-return]
