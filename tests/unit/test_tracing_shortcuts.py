"""What the tracer remembers of torch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.autograd.function as functions

from jobs.tracing import shortcuts


class Scale(torch.autograd.Function):
    """A function with a context of its own, and a default."""

    @staticmethod
    def forward(inputs: torch.Tensor, factor: float = 3.0) -> torch.Tensor:
        return inputs * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return gradient * ctx.factor, None


def test_a_function_is_applied_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "inspect", inspect)  # taken back at the end
    shortcuts.install()
    for factor in ((), (2.0,)):
        inputs = torch.ones(2, requires_grad=True)
        Scale.apply(inputs, *factor).sum().backward()  # type: ignore[no-untyped-call]
        assert inputs.grad is not None
        assert inputs.grad.tolist() == [*(factor or (3.0,))] * 2
