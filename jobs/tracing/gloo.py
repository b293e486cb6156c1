"""What gloo takes inside its collectives, on the CPU (torch 2.13, csrc/distributed/c10d/ProcessGroupGloo.cpp).

An all-gather collects into one tensor of its own and copies from it, a reduce-scatter reduces a copy of its input, and
the rank that scatters copies what it sends into one tensor. NCCL needs none of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed  # registers the operations

c10d = torch.ops.c10d
functional = torch.ops._c10d_functional


def scratch_bytes(operation: Any, args: tuple[Any, ...], _kwargs: dict[str, Any]) -> int:
    """Bytes that a collective holds while it runs, beside its output."""
    if operation is c10d._allgather_base_.default:
        return _num_bytes(args[0])
    if operation is functional.all_gather_into_tensor.default:
        return _num_bytes(args[0]) * int(args[1])
    if operation is c10d._reduce_scatter_base_.default:
        return _num_bytes(args[1])
    if operation is c10d.scatter_.default:
        return sum(_num_bytes(tensor) for tensors in args[1] for tensor in tensors)
    return 0


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
