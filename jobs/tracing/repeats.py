"""Operations that were seen before with the same arguments: their fake results, made at once.

A model has its block dozens of times, so nearly every operation of a trace repeats one. FakeTensorMode keeps results
too (torch 2.13, fake_tensor.py _cached_dispatch_impl), for symbolic sizes and subclasses as well, which makes it ten
times as slow as what is left here: tensors of one mode, with known sizes. What depends on values or changes the sizes
of its arguments is not kept, and neither is anything that a result made here would differ from in any respect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

aten = torch.ops.aten

NAMESPACES = ("aten", "prims", "fsdp", "bitsandbytes")
NEVER = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)
PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
VALUES = (int, float, bool, type(None))
COLLECTIVES = "c10d"
# What these return begins where their arguments say, or in elements of another size; all others count from the first
# element of the tensor that they are given.
ABSOLUTE = frozenset(
    {
        aten.as_strided.default,
        aten.as_strided_copy.default,
        aten.as_strided_scatter.default,
        aten.view.dtype,
    }
)
SLICE = aten.slice.Tensor
SLICE_WITHOUT_STEP = 4  # arguments: the tensor, which dimension, from where, to where
COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
META = torch.device("meta")

empty, empty_strided, make_subclass = torch.empty, torch.empty_strided, torch.Tensor._make_subclass
_DisableTorchDispatch = torch._C._DisableTorchDispatch
_set_throw_on_mutable_data_ptr = torch._C._set_throw_on_mutable_data_ptr
fake_mode_now = torch._C._get_dispatch_mode
FAKE = torch._C._TorchDispatchModeKey.FAKE

Key = tuple[Any, ...]
"""An operation with everything about its arguments that decides its result."""

Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs an operation, given its arguments."""


class _Unknown(Exception):
    """An argument that no key is made for."""


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor to make: new, or in the storage of the tensor argument numbered `source`, so many elements further on.

    attributes: what FakeTensor's constructor leaves on its instance. is_same: the source once more, as it is.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    source: int | None
    attributes: dict[str, Any]
    is_same: bool

    def again(self, tensors: list[FakeTensor], further: int = 0) -> FakeTensor:
        """The tensor, given the tensor arguments, and how much further on it is this time."""
        with _DisableTorchDispatch():
            if self.source is None:
                plain = empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)
            elif self.is_same and not further:
                plain = tensors[self.source]
            else:
                source = tensors[self.source]
                plain = empty((0,), dtype=self.dtype, device=META)
                offset = source.storage_offset() + self.offset + further
                plain.set_(source.untyped_storage(), offset, self.shape, self.stride)
            made = make_subclass(FakeTensor, plain, False, dispatch_device=True, device_for_backend_keys=self.device)
        made.__dict__.update(self.attributes)
        _set_throw_on_mutable_data_ptr(made)
        return made  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Argument:
    """The tensor argument of this number itself."""

    number: int

    def again(self, tensors: list[FakeTensor]) -> FakeTensor:
        """The tensor, given the tensor arguments."""
        return tensors[self.number]


@dataclass(frozen=True, slots=True)
class Value:
    """No tensor: the same every time."""

    value: int | float | None

    def again(self, _tensors: list[FakeTensor]) -> int | float | None:
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Result:
    """What an operation returned: one thing (no container), or a list or tuple."""

    parts: tuple[Made | Argument | Value, ...]
    container: type | None

    def again(self, tensors: list[FakeTensor]) -> Any:
        """The result once more, given the tensor arguments."""
        if self.container is not None:
            return self.container([part.again(tensors) for part in self.parts])
        return self.parts[0].again(tensors)


class Repeats:
    """Runs operations under a FakeTensorMode, and those that it knows without."""

    def __init__(self) -> None:
        self._results: dict[Key, Result | None] = {}
        self._runners: dict[Any, Run] = {}

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation's result, as torch would give it."""
        runner = self._runners.get(operation)
        if runner is None:
            runner = self._runners[operation] = self._runner(operation)
        return runner(operation, args, kwargs)

    def _runner(self, operation: Any) -> Run:
        if not isinstance(operation, torch._ops.OpOverload):
            return _as_ever
        if operation.namespace == COLLECTIVES:
            return _collective
        if operation is SLICE:
            return self._slice
        is_kept = operation.namespace in NAMESPACES and not any(tag in operation.tags for tag in NEVER)
        return self._run_kept if is_kept else _as_ever

    def _run_kept(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors: list[FakeTensor] = []
        try:
            key = _key(operation, args, kwargs, tensors)
        except _Unknown:
            return operation(*args, **kwargs)
        if key in self._results:
            known = self._results[key]
            return operation(*args, **kwargs) if known is None else known.again(tensors)
        result = operation(*args, **kwargs)
        is_same = _key(operation, args, kwargs, []) == key  # or else it has changed its arguments' sizes
        self._results[key] = _result(result, tensors) if is_same else None
        return result

    def _slice(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One known slice stands for all of its length: the others begin further on in the same storage.

        ZeRO-3 gathers parameters and gradients in buffers, each in a place of its own.
        """
        further = _beginning(*args) if len(args) == SLICE_WITHOUT_STEP and not kwargs else None
        if further is None:
            return self._run_kept(operation, args, kwargs)
        tensor, dim, start, end = args
        first = (tensor, dim, 0, end - start)
        tensors: list[FakeTensor] = []
        try:
            key = _key(operation, first, kwargs, tensors)
        except _Unknown:
            return operation(*args)
        if key not in self._results:
            self._run_kept(operation, first, kwargs)
        known = self._results[key]
        if known is None or not isinstance(known.parts[0], Made):
            return operation(*args)
        return known.parts[0].again(tensors, further)


def _beginning(tensor: torch.Tensor, dim: int, start: int | None, end: int | None) -> int | None:
    """How many elements into its tensor a slice begins; None where that takes more than these numbers to say."""
    if start is None or end is None:
        return None
    return start * tensor.stride(dim) if 0 <= start <= end <= tensor.shape[dim] else None


def _as_ever(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return operation(*args, **kwargs)


def _collective(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A collective of the fake group, called without FakeTensorMode looking for its shapes: it makes no tensors."""
    mode = fake_mode_now(FAKE)
    if mode is None or kwargs or not all(_is_fake(arg, mode) for arg in args):
        return operation(*args, **kwargs)
    with in_kernel_invocation_manager(mode):
        return operation(*args)


def _is_fake(arg: Any, mode: Any) -> bool:
    if isinstance(arg, (list, tuple)):
        return all(_is_fake(part, mode) for part in arg)
    return not isinstance(arg, torch.Tensor) or (isinstance(arg, FakeTensor) and arg.fake_mode is mode)


def _key(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[FakeTensor]) -> Key:
    """The key, and in `tensors` all tensors among the arguments. Raises _Unknown."""
    mode = fake_mode_now(FAKE)
    parts: list[Any] = [operation, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
    _add(parts, args, tensors, mode)
    if kwargs:
        parts.append(tuple(kwargs))
        _add(parts, kwargs.values(), tensors, mode)
    if operation in ABSOLUTE:
        parts.extend(tensor.storage_offset() for tensor in tensors)
    return tuple(parts)


def _add(parts: list[Any], values: Iterable[Any], tensors: list[FakeTensor], mode: Any) -> None:
    for value in values:
        kind = type(value)
        if kind in PLAIN:
            parts.append(kind)  # 1 is 1.0 is True, and their results have different dtypes
            parts.append(value)
        elif isinstance(value, FakeTensor):
            if value.constant is not None or value.fake_mode is not mode or value.dtype in COMPLEX:
                raise _Unknown
            tensors.append(value)
            parts.append(
                (
                    value.shape,
                    value.stride(),
                    value.dtype,
                    value.fake_device,
                    value.layout,
                    value.requires_grad,
                )
            )
        elif kind is list or kind is tuple:
            parts.append(kind)
            parts.append(len(value))
            _add(parts, value, tensors, mode)
        else:
            raise _Unknown


def _result(result: Any, tensors: list[FakeTensor]) -> Result | None:
    """How to make a result again; None where that would not give the same."""
    container = type(result) if isinstance(result, (list, tuple)) else None
    if container not in (list, tuple, None):
        return None
    wanted = [result] if container is None else result
    parts = [_part(part, tensors) for part in wanted]
    addresses = {tensor.untyped_storage()._cdata for tensor in wanted if isinstance(tensor, torch.Tensor)}
    new = [part for part in parts if isinstance(part, Made) and part.source is None]
    known = {tensor.untyped_storage()._cdata for tensor in tensors}
    if None in parts or len(addresses - known) != len(new):  # two parts of one new storage
        return None
    return Result(tuple(parts), container)


def _part(tensor: Any, tensors: list[FakeTensor]) -> Made | Argument | Value | None:
    if type(tensor) in VALUES:
        return Value(tensor)
    for number, argument in enumerate(tensors):
        if tensor is argument:
            return Argument(number)
    if type(tensor) is not FakeTensor or tensor.layout is not torch.strided or tensor.dtype in COMPLEX:
        return None
    storage = tensor.untyped_storage()
    sources = (n for n, argument in enumerate(tensors) if argument.untyped_storage()._cdata == storage._cdata)
    source = next(sources, None)
    made = Made(
        shape=tuple(tensor.shape),
        stride=tensor.stride(),
        offset=tensor.storage_offset() - (0 if source is None else tensors[source].storage_offset()),
        dtype=tensor.dtype,
        device=tensor.fake_device,
        source=source,
        attributes=dict(tensor.__dict__),
        is_same=source is not None and _layout(tensor) == _layout(tensors[source]),
    )
    return made if _alike(made.again(tensors), tensor) else None


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _alike(made: FakeTensor, tensor: FakeTensor) -> bool:
    return _properties(made) == _properties(tensor)


def _properties(tensor: FakeTensor) -> tuple[Any, ...]:
    return (
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        tensor.dtype,
        tensor.fake_device,
        tensor.requires_grad,
        tensor.constant,
        tensor.untyped_storage().nbytes(),
        torch._C._dispatch_key_set(tensor),
        tensor.__dict__,
    )
