"""A result that the tracer makes again is the one that FakeTensorMode makes, or it is not made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.tracing.repeats import Repeats

aten = torch.ops.aten

Program = Callable[[torch.Tensor], Any]
"""Operations on a matrix of 6 x 8 that begins in the middle of its storage."""


class Repeating(TorchDispatchMode):
    """Runs every operation as the recorder does."""

    def __init__(self, repeats: Repeats) -> None:
        super().__init__()
        self._repeats = repeats

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._repeats.run(func, args, kwargs or {})


class Counting(FakeTensorMode):
    """Counts the operations that come to it."""

    num_operations = 0

    def dispatch(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        self.num_operations += func is not torch.ops.prim.device.default  # a tensor is asked where it is
        return super().dispatch(func, *args, **kwargs)


@pytest.fixture
def mode() -> Iterator[Counting]:
    with Counting(allow_non_fake_inputs=True) as entered:
        yield entered


def matrix(offset: int = 0) -> torch.Tensor:
    return torch.empty(200)[offset : offset + 48].view(6, 8)


def described(result: Any, inputs: torch.Tensor) -> Any:
    """Everything about a result that memory or later operations depend on."""
    if isinstance(result, (list, tuple)):
        return type(result), [described(part, inputs) for part in result]
    if not isinstance(result, torch.Tensor):
        return result
    assert type(result) is FakeTensor
    storage = result.untyped_storage()
    return (
        result is inputs,
        storage._cdata == inputs.untyped_storage()._cdata,
        result.shape,
        result.stride(),
        result.storage_offset(),
        result.dtype,
        result.device,
        storage.nbytes(),
        result.requires_grad,
        sorted(vars(result)),
    )


KNOWN: dict[str, Program] = {
    "new": lambda x: aten.mm.default(x, aten.t.default(x)),
    "view": lambda x: aten.view.default(x, [48]),
    "same": lambda x: aten.detach.default(x),
    "slice": lambda x: aten.slice.Tensor(x, 0, 2, 4),
    "strides": lambda x: aten.as_strided.default(x, [3], [2], 5),
    "bytes": lambda x: aten.view.dtype(x, torch.uint8),
    "views": lambda x: aten.split.Tensor(x, 4, 1),
    "in place": lambda x: aten.add_.Tensor(x, 1.0),
    "cast": lambda x: aten._to_copy.default(x, dtype=torch.bfloat16),
    "list": lambda x: aten._foreach_add.Scalar([x, x], 1.0),
    "nothing": lambda x: aten._foreach_add_.Scalar([x], 1.0),
    "written": lambda x: aten.copy_.default(aten.slice.Tensor(x, 0, 0, 3), aten.slice.Tensor(x, 0, 3, 6)),
    "reduced": lambda x: aten.native_layer_norm.default(x, [8], None, None, 1e-5),
    "made": lambda _x: aten.empty.memory_format([3, 4], dtype=torch.float16, device=torch.device("cpu")),
    "promoted": lambda x: aten.add.Tensor(aten._to_copy.default(x, dtype=torch.int64), 1.5),
}


OF_ONE_OFFSET = ("strides", "bytes")


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_result_is_made_as_it_was_without_the_mode(mode: Counting, name: str) -> None:
    expected_inputs = matrix(offset=16)
    expected = described(KNOWN[name](expected_inputs), expected_inputs)
    first_inputs, inputs = matrix(offset=32), matrix(offset=16)
    with Repeating(Repeats()):
        KNOWN[name](first_inputs)
        mode.num_operations = 0
        result = KNOWN[name](inputs)
        assert mode.num_operations == (1 if name in OF_ONE_OFFSET else 0)
    assert described(result, inputs) == expected


@pytest.mark.parametrize(("dim", "start", "end"), [(0, 3, 5), (-1, 2, 4), (0, 4, 6), (0, 6, 6), (0, 4, 7), (0, -2, 6)])
def test_a_slice_of_a_known_length_begins_anywhere(mode: Counting, dim: int, start: int, end: int) -> None:
    expected_inputs, inputs = matrix(offset=16), matrix(offset=16)
    expected = described(aten.slice.Tensor(expected_inputs, dim, start, end), expected_inputs)
    with Repeating(Repeats()):
        aten.slice.Tensor(inputs, dim, 0, 2)
        mode.num_operations = 0
        result = aten.slice.Tensor(inputs, dim, start, end)
        assert (mode.num_operations == 0) == (end - start == 2)
    assert described(result, inputs) == expected


@pytest.mark.parametrize("other", [True, 1, 1.0])
def test_numbers_that_are_equal_are_told_apart(mode: Counting, other: float) -> None:
    del mode
    inputs = aten._to_copy.default(matrix(), dtype=torch.uint8)
    with Repeating(Repeats()):
        for number in (True, 1, 1.0):
            aten.add.Tensor(inputs, number)
        result = aten.add.Tensor(inputs, other)
    assert result.dtype == (torch.float32 if isinstance(other, float) else torch.uint8)


def test_what_resizes_its_argument_runs_every_time(mode: Counting) -> None:
    del mode
    with Repeating(Repeats()):
        for _ in range(2):
            inputs = torch.empty(4)
            aten.resize_.default(inputs, [100])
            assert inputs.untyped_storage().nbytes() == 400


def test_a_constant_is_not_replaced(mode: Counting) -> None:
    del mode
    with Repeating(Repeats()):
        for value in (3, 4):
            assert torch.tensor(value).item() == value
