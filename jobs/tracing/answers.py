"""Answers to what only data could tell, which fake tensors do not have; each is kept, with who asked."""

from __future__ import annotations

import sys
from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensor


class Answers:
    """What was answered, and how often. asked_through: the file that passes questions on and is nobody who asks."""

    def __init__(self, *, asked_through: str) -> None:
        self.counts: Counter[str] = Counter()
        self._between = {__file__, asked_through}

    def value_of(self, tensor: FakeTensor) -> bool | int | float:
        """The value of a tensor. Zero is what flags of overflow have in a healthy step; counts are at least one."""
        if tensor.constant is not None:
            return tensor.constant.item()  # type: ignore[no-any-return]
        dtype = tensor.dtype
        value: bool | int | float
        if dtype is torch.bool:
            value = False
        elif dtype.is_floating_point:
            value = 0.0
        else:
            value = 0 if dtype is torch.uint8 else 1
        self.note(f"a {str(dtype).removeprefix('torch.')}", str(value))
        return value

    def note(self, what: str, answer: str) -> None:
        """Keep what was asked for, and what was answered."""
        self.counts[f"{self._asker()} asked for {what}: answered {answer}"] += 1

    def _asker(self) -> str:
        """File, line and function of the first frame outside torch and those between: who wants to know."""
        frame = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if f"{torch.__name__}/" not in name.replace("\\", "/") and name not in self._between:
                break
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return "torch"
        parts = frame.f_code.co_filename.replace("\\", "/").split("/")
        return f"{'/'.join(parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
