"""What torch does for real tensors and not for fake ones, though memory depends on it (torch 2.13)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import profiler

from jobs.tracing.recorder import Recorder


def install(recorder: Callable[[], Recorder | None]) -> None:
    """Let modules move, optimizers step and storages resize as those of real tensors."""
    _number_no_host()
    _give_addresses()
    _let_modules_move()
    _let_optimizers_choose()
    _multiply_groups_in_any_dtype()
    _watch_resizes(recorder)
    _profile_nothing()


def _number_no_host() -> None:
    """A real tensor made for cpu:0 says that it is on cpu, which transformers compares; a fake one keeps the number
    (torch/_subclasses/fake_tensor.py _normalize_fake_device)."""
    original = FakeTensor._normalize_fake_device

    def normalise(device: torch.device) -> torch.device:
        return torch.device("cpu") if device.type == "cpu" else original(device)

    FakeTensor._normalize_fake_device = staticmethod(normalise)  # type: ignore[method-assign]


def _give_addresses() -> None:
    """Fake storages all lie at address 0. accelerate finds a parameter's shard by it (1.15, accelerator.py
    _prepare_fsdp2), FSDP2 whether a shard is still where it was: every storage gets an address of its own."""
    storage_address = torch.UntypedStorage.data_ptr

    def of_storage(self: torch.UntypedStorage) -> int:
        if self.device.type != "meta":
            return int(storage_address(self))
        return int(self._cdata) << SPACING if self.nbytes() else 0

    def of_tensor(self: torch.Tensor) -> int:
        start = self.untyped_storage().data_ptr()
        return start + self.storage_offset() * self.element_size() if start else 0

    torch.UntypedStorage.data_ptr = of_storage  # type: ignore[method-assign]
    FakeTensor.data_ptr = of_tensor  # type: ignore[method-assign]


SPACING = 48  # bits between two addresses: more than any storage is large


def _let_modules_move() -> None:
    """Module.to: for a fake parameter torch swaps tensors, which fails where anything else refers to the parameter
    (torch/nn/modules/module.py _apply), and real ones keep their identity. Here the data is set, as for real ones."""
    original = nn.Module._apply

    def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
        own = [*self._parameters.values(), *self._buffers.values()]
        if not any(isinstance(tensor, FakeTensor) for tensor in own):
            return original(self, function, recurse)
        for module in self.children() if recurse else ():
            module._apply(function)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = _moved(parameter, function)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
        return self

    nn.Module._apply = _apply  # type: ignore[method-assign]


def _moved(parameter: nn.Parameter, function: Callable[[torch.Tensor], torch.Tensor]) -> nn.Parameter:
    with torch.no_grad():
        new = function(parameter)
        fake = isinstance(parameter, FakeTensor) and isinstance(new, FakeTensor)
        if not fake or not torch._has_compatible_shallow_copy_type(parameter, new):  # from the meta device, or to it
            return nn.Parameter(new, requires_grad=parameter.requires_grad)
        if parameter.grad is not None:
            _set_data(parameter.grad, function(parameter.grad))
    _set_data(parameter, new)
    return parameter


def _set_data(tensor: torch.Tensor, new: torch.Tensor) -> None:
    """`tensor.data = new`, with the device that a fake tensor keeps in Python."""
    if new is tensor:
        return
    tensor.data = new
    tensor.fake_device = new.fake_device  # type: ignore[attr-defined]


def _let_optimizers_choose() -> None:
    """foreach and fused are chosen for lists of plain tensors only, by type (torch/optim/optimizer.py,
    torch/utils/_foreach_utils.py); a fake tensor stands for a plain one."""
    for name in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        import_module(name)._foreach_supported_types.append(FakeTensor)


def _multiply_groups_in_any_dtype() -> None:
    """The shape function of a grouped product (torch/_meta_registrations.py) takes bf16 alone. The kernels take fp32
    and fp16 too, which the experts of a model trained in fp32 have, under autocast as well: it is asked for bf16."""
    registrations = import_module("torch._meta_registrations")
    original = registrations._meta_grouped_mm_common

    def common(mat_a: torch.Tensor, mat_b: torch.Tensor, **options: Any) -> torch.Tensor:
        if mat_a.dtype not in (torch.float32, torch.float16) or options["scale_a"] is not None:
            return original(mat_a, mat_b, **options)  # type: ignore[no-any-return]
        product = original(mat_a.to(torch.bfloat16), mat_b.to(torch.bfloat16), **options)
        return product.to(options["out_dtype"] or mat_a.dtype)  # type: ignore[no-any-return]

    registrations._meta_grouped_mm_common = common


def _watch_resizes(recorder: Callable[[], Recorder | None]) -> None:
    """FSDP frees and takes back its all-gathered parameters by storage.resize_(), which no dispatch mode sees."""
    original = torch.UntypedStorage.resize_

    def resize_(self: torch.UntypedStorage, size_bytes: int) -> Any:
        result = original(self, size_bytes)
        found = recorder()
        if found is not None:
            found.resized(self, size_bytes)
        return result

    torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign]


def _profile_nothing() -> None:
    """torch.profiler.record_function names thousands of stretches of time for a profiler that is not there."""
    for name in ("__enter__", "__exit__"):
        assert hasattr(profiler.record_function, name)
    profiler.record_function.__enter__ = lambda self: self  # type: ignore[method-assign]
    profiler.record_function.__exit__ = lambda *_: None  # type: ignore[method-assign]
