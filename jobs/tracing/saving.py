"""Saving on fake tensors: the state dict is gathered as ever, and written nowhere (safetensors 0.8).

save_file copies every tensor of a file to the host, and keeps the copies until the file is written. The job then opens
each file to count what is in it, which maps the file; torch counts a mapped file as allocated.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from jobs.tracing.huggingface import MappedFile

NAMES = (  # modules, and what they call it
    ("safetensors.torch", "save_file"),
    ("transformers.modeling_utils", "safe_save_file"),
    ("peft.peft_model", "safe_save_file"),
)


class Files:
    """The files that would have been written."""

    def __init__(self) -> None:
        self._sizes_bytes: list[int] = []
        for module, name in NAMES:
            found = import_module(module)
            assert hasattr(found, name), f"{module}.{name} is gone"
            setattr(found, name, self.save)

    def save(self, tensors: dict[str, torch.Tensor], *_: Any, **__: Any) -> None:
        """safetensors' save_file."""
        kept = [tensor.to("cpu") for tensor in tensors.values()]
        self._sizes_bytes.append(sum(tensor.numel() * tensor.element_size() for tensor in kept))

    def open_each(self) -> None:
        """Map one file after the other."""
        for size_bytes in self._sizes_bytes:
            MappedFile(size_bytes)
