"""bitsandbytes on fake tensors (0.50): its quantised weights, and the weights that its kernels dequantise inside.

- Params4bit and Int8Params make themselves of the tensor they are given by Tensor._make_subclass, which a fake tensor
  refuses. Here they become fake tensors that are Params4bit or Int8Params as well, under the same class names, which
  is what transformers, peft and accelerate ask for.
- Fake kernels give outputs only. gemm_4bit on CUDA dequantises the whole weight above 1,536 tokens, and for most shapes
  above a few (backends/cuda/ops.py, _dequant_linear_fallback): that is spelled out here for any number of tokens. On
  the CPU the kernels are Python, and run as they are (backends/default/ops.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from jobs.tracing.recorder import Expansion
from jobs.tracing.target import Target

DEFAULT_KERNEL = torch._C.DispatchKey.CompositeExplicitAutograd


def install(target: Target, note: Callable[[str], None]) -> dict[Any, Expansion]:
    """Let quantised parameters be fake. Returns what operations do inside; note(sentence) is told what is assumed."""
    torch.Tensor._make_subclass = staticmethod(_make_subclass(torch.Tensor._make_subclass))  # type: ignore[method-assign]
    import bitsandbytes  # noqa: F401 - defines the operations

    operations = torch.ops.bitsandbytes
    if target.on_cuda:
        note("bitsandbytes dequantises every 4-bit weight in the forward pass, as it does above 1,536 tokens")
        return {operations.gemm_4bit.default: gemm_4bit}
    return {
        operation: functools.partial(operation._op_dk, DEFAULT_KERNEL)
        for operation in (operations.gemm_4bit.default, operations.quantize_4bit.default)
    }


def _make_subclass(original: Any) -> Any:
    def make(cls: type, data: torch.Tensor, require_grad: bool = False, *rest: Any, **kwargs: Any) -> Any:
        if not (isinstance(data, FakeTensor) and issubclass(cls, nn.Parameter)):
            return original(cls, data, require_grad, *rest, **kwargs)
        made = data.detach()
        made.__class__ = _fake_class(cls)
        return made.requires_grad_(require_grad)

    return make


@functools.cache
def _fake_class(kind: type) -> type:
    """A class that is both, under the name of the parameter's."""
    if issubclass(kind, FakeTensor):
        return kind
    return type(kind)(kind.__name__, (kind, FakeTensor), {"data": property(_get_data, _set_data)})


def _get_data(self: FakeTensor) -> torch.Tensor:
    return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]


def _set_data(self: FakeTensor, new: torch.Tensor) -> None:
    torch.Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
    if isinstance(new, FakeTensor):
        self.fake_device = new.fake_device  # kept in Python, beside the tensor


def gemm_4bit(
    activations: torch.Tensor,
    _weight: torch.Tensor,
    shape: list[int],
    _absmax: torch.Tensor,
    _blocksize: int,
    _quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """The unfused form: the constants of double quantisation, the whole weight in the activations' dtype, a product."""
    del absmax_code
    held = []  # until the product is there, as the kernel's own variables
    if absmax_8bit is not None:
        nested = torch.empty_like(absmax_8bit, dtype=torch.float32)
        held = [nested, nested + absmax_offset]
    weight = torch.empty(shape, dtype=activations.dtype, device=activations.device)
    product = F.linear(activations, weight, bias)
    del held
    return product


def constants(model: nn.Module) -> Iterator[torch.Tensor]:
    """What it takes to dequantise the weights of a model, kept beside them."""
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        while state is not None:
            yield from (part for part in (state.absmax, state.code, state.offset) if isinstance(part, torch.Tensor))
            state = state.state2
