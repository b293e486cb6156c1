"""Bytes of optimizer state for the tensors that an optimizer steps.

AdamW: exp_avg and exp_avg_sq in the dtype of the stepped tensor, and a fp32 step counter per tensor (torch 2.13
optim/adamw.py through adam.py, fused). The fused kernel makes no temporary copies; the foreach one has the roots of
all second moments at once (torch optim/adam.py _multi_tensor_adam, torch._foreach_sqrt), as large as one moment.

8-bit AdamW: one byte per element and moment, an fp32 absmax per block of 256 elements and moment; tensors under
4096 elements keep fp32 moments; two 256-entry fp32 maps are shared by all (bitsandbytes 0.50 optim/optimizer.py,
Optimizer2State.init_state: blocksize 256, min_8bit_size 4096).
Paged: moments of at least 1e5 elements live in CUDA managed memory, outside the framework's allocator (same file,
get_state_buffer).
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.spec import Dtype, Optimizer
from launcher.units import ceil_div

MOMENTS = 2
STEP_BYTES = 4
BLOCK_SIZE_8BIT = 256
MIN_8BIT_NUMEL = 4096
MIN_PAGED_NUMEL = 100_000
QUANTILE_MAPS_BYTES = 2 * 256 * 4


def adamw_bytes(numel: int, dtype: Dtype) -> int:
    """Both moments and the step counter of one tensor."""
    return MOMENTS * numel * dtype.num_bytes + STEP_BYTES


def foreach_bytes(optimizer: Optimizer, numel: int, dtype: Dtype) -> int:
    """Temporaries of the foreach AdamW, for all the elements it steps; the 8-bit kernels have none."""
    return numel * dtype.num_bytes if optimizer is Optimizer.ADAMW else 0


def adamw_8bit_bytes(numel: int) -> int:
    """Both moments of one tensor, blockwise."""
    if numel < MIN_8BIT_NUMEL:
        return MOMENTS * numel * Dtype.FLOAT32.num_bytes
    return MOMENTS * (numel + ceil_div(numel, BLOCK_SIZE_8BIT) * 4)


def paged_moment_bytes(numel: int) -> int:
    """The part of one tensor's 8-bit moments that the paged optimizer puts into managed memory."""
    return MOMENTS * numel if numel >= MIN_PAGED_NUMEL else 0


def states_bytes(optimizer: Optimizer, tensors: Iterable[tuple[int, int]], dtype: Dtype) -> int:
    """Device bytes for tensors given as (elements, how many such tensors)."""
    if optimizer is Optimizer.ADAMW:
        return sum(count * adamw_bytes(numel, dtype) for numel, count in tensors if numel)
    total = sum(
        count * (adamw_8bit_bytes(numel) - (paged_moment_bytes(numel) if is_paged(optimizer) else 0))
        for numel, count in tensors
    )
    return total + QUANTILE_MAPS_BYTES


def managed_bytes(optimizer: Optimizer, tensors: Iterable[tuple[int, int]]) -> int:
    """Managed-memory bytes for tensors given as (elements, how many such tensors)."""
    return sum(count * paged_moment_bytes(numel) for numel, count in tensors) if is_paged(optimizer) else 0


def is_paged(optimizer: Optimizer) -> bool:
    """Whether large moments live in managed memory."""
    return optimizer is Optimizer.PAGED_ADAMW_8BIT


SOURCES = {
    Optimizer.ADAMW: "torch 2.13 optim/adam.py, fused",
    Optimizer.ADAMW_8BIT: "bitsandbytes 0.50 optim/optimizer.py Optimizer2State",
    Optimizer.PAGED_ADAMW_8BIT: "bitsandbytes 0.50 optim/optimizer.py Optimizer2State, get_state_buffer",
}
