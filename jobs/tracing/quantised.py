"""bitsandbytes on fake tensors (0.50): its quantised weights, and the weights that its kernels dequantise inside.

- Params4bit and Int8Params make themselves of the tensor they are given by Tensor._make_subclass, which a fake tensor
  refuses. Here they become fake tensors that are Params4bit or Int8Params as well, under the same class names, which
  is what transformers, peft and accelerate ask for.
- Fake kernels give outputs only. gemm_4bit on CUDA dequantises the whole weight above 1,536 tokens, and for most shapes
  above a few (backends/cuda/ops.py, _dequant_linear_fallback): that is spelled out here for any number of tokens, and
  so is what LLM.int8() holds inside, as if no activation were an outlier. Kernels written in Python run as they are:
  on the CPU nearly all (backends/default/ops.py).
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
from launcher.spec import QuantType

ALWAYS_DEQUANTISED = "bitsandbytes dequantises every 4-bit weight in the forward pass, as it does above 1,536 tokens"
NO_OUTLIERS = "no activation is an outlier in the sense of LLM.int8()"
DEFAULT_KERNEL = torch._C.DispatchKey.CompositeExplicitAutograd


def install(target: Target, note: Callable[[str], None]) -> dict[Any, Expansion]:
    """Let quantised parameters be fake. Returns what operations do inside; note(sentence) is told what is assumed."""
    torch.Tensor._make_subclass = staticmethod(_make_subclass(torch.Tensor._make_subclass))  # type: ignore[method-assign]
    import bitsandbytes  # noqa: F401 - defines the operations

    operations = torch.ops.bitsandbytes
    python = [operations.int8_mixed_scaled_mm.default, operations.int8_scaled_mm.default]
    if target.on_cuda:
        is_int8 = target.spec.method.quant_type is QuantType.INT8
        note(NO_OUTLIERS if is_int8 else ALWAYS_DEQUANTISED)
        spelled_out: dict[Any, Expansion] = {
            operations.gemm_4bit.default: gemm_4bit,
            operations.int8_mm_dequant.default: int8_mm_dequant,
            operations.int8_vectorwise_quant.default: int8_vectorwise_quant,
        }
    else:
        spelled_out = {}
        python += [
            operations.gemm_4bit.default,
            operations.quantize_4bit.default,
            operations.int8_mm_dequant.default,
            operations.int8_vectorwise_quant.default,
        ]
        if not operations.int8_linear_matmul.default.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU):
            python.append(operations.int8_linear_matmul.default)
    return spelled_out | {operation: functools.partial(operation._op_dk, DEFAULT_KERNEL) for operation in python}


def page_on_host(note: Callable[[str], None]) -> None:
    """Give paged optimizers host memory: theirs is CUDA's managed memory, which torch's allocator never sees.

    bitsandbytes allocates, fills and prefetches it through its CUDA library (functional.py).
    """
    from bitsandbytes import functional

    def get_paged(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device) -> torch.Tensor:
        states = torch.empty(shape, dtype=dtype, device="cpu")
        states.is_paged = True  # type: ignore[attr-defined]
        states.page_deviceid = device.index  # type: ignore[attr-defined]
        return states

    note("a paged optimizer's states are counted on the host")
    for name, value in {"get_paged": get_paged, "fill": _nothing, "prefetch_tensor": _nothing}.items():
        assert hasattr(functional, name), f"bitsandbytes.functional.{name} is gone"
        setattr(functional, name, value)


def _nothing(*_: Any, **__: Any) -> None:
    return None


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


def int8_vectorwise_quant(
    activations: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows and their scales, and a search for outliers that finds none."""
    scales = activations.new_empty(activations.numel() // activations.shape[-1], dtype=torch.float32)
    rows = torch.empty_like(activations, dtype=torch.int8)
    if threshold <= 0.0:
        return rows, scales, None
    outliers = activations.abs() >= threshold
    none = activations.new_empty(0, dtype=torch.int64)
    del outliers  # at the end, as the kernel's own variable
    return rows, scales, none


def int8_mm_dequant(
    product: torch.Tensor,
    _row_scales: torch.Tensor,
    _column_scales: torch.Tensor,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The kernel writes half precision, which is cast afterwards."""
    del bias
    return torch.empty_like(product, dtype=torch.float16).to(dtype or torch.float16)


def constants(model: nn.Module) -> Iterator[torch.Tensor]:
    """What it takes to dequantise the weights of a model, kept beside them."""
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        while state is not None:
            yield from (part for part in (state.absmax, state.code, state.offset) if isinstance(part, torch.Tensor))
            state = state.state2
        # Of LLM.int8(): with the weight until the layer's first forward pass, with the layer afterwards.
        for holder in (getattr(module, "weight", None), getattr(module, "state", None)):
            scales = getattr(holder, "SCB", None)
            if isinstance(scales, torch.Tensor):
                yield scales
