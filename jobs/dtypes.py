"""Dtypes of the specification as torch's."""

from __future__ import annotations

import torch

from launcher.spec import Dtype


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """torch.bfloat16 for Dtype.BFLOAT16, and so on."""
    found = getattr(torch, dtype.value)
    assert isinstance(found, torch.dtype)
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """'bfloat16' for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
