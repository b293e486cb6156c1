"""Scratch memory inside CUDA kernels, which no tensor shows: an amount by formula for each operation that takes any.

The CPU's kernels need none of this table: what they take and free inside was measured to be too small to see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from launcher.units import round_up

aten = torch.ops.aten

FLOAT_BYTES = 4
INDEX_BYTES = 8


def scratch_bytes(operation: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> int:
    """Bytes that `operation` holds on the GPU while it runs, beside its outputs."""
    formula = FORMULAS.get(operation)
    return formula(args) if formula is not None else 0


def flash_attention_backward(args: tuple[Any, ...]) -> int:
    """softmax_d and dq_accum in fp32, rounded up to the kernel's blocks, and dk, dv for every query head.

    torch 2.13 aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp mha_bwd: seqlen_q_rounded to 128,
    head_size_rounded to 32 (64 above 128); dk_expanded and dv_expanded where there are fewer key heads.
    """
    query, key = args[1], args[2]
    batch, heads, length, head = query.shape
    key_heads, key_length = key.shape[1], key.shape[2]
    rounded_length = round_up(length, 128)
    rounded_head = round_up(head, 32 if head <= 128 else 64)
    total: int = batch * heads * rounded_length * FLOAT_BYTES * (1 + rounded_head)
    if key_heads != heads:
        total += 2 * batch * key_length * heads * round_up(head, 8) * key.element_size()
    return total


def embedding_backward(args: tuple[Any, ...]) -> int:
    """Indices and their order, sorted and unsorted, where there are many.

    torch 2.13 aten/src/ATen/native/cuda/Embedding.cu embedding_dense_backward_cuda: above 3072 indices they are
    sorted, with as much again for cub's temporary storage and the counts.
    """
    num_indices = args[1].numel()
    return 4 * num_indices * INDEX_BYTES if num_indices > 3072 else 0


FORMULAS: dict[Any, Callable[[tuple[Any, ...]], int]] = {
    aten._scaled_dot_product_flash_attention_backward.default: flash_attention_backward,
    aten.embedding_dense_backward.default: embedding_backward,
}
MATRIX_PRODUCTS = frozenset(
    {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten._grouped_mm.default}
)

_CUDA_KERNELS = torch.library.Library("aten", "IMPL")  # registrations last as long as this does


def install() -> None:
    """Stand in for kernels of a CUDA build that decide how an operation is taken apart.

    A build without them takes SiLU's gradient, for want of a kernel of its own, as five operations with their
    tensors (aten/src/ATen/native/native_functions.yaml silu_backward, CompositeImplicitAutograd).
    """
    _CUDA_KERNELS.impl("silu_backward", lambda _gradient, inputs: torch.empty_like(inputs), "CUDA")
