"""Records what a program does to memory: every storage that is made and freed, in order, with its stream and operation.

A TorchDispatchMode on top of FakeTensorMode sees each operation and the tensors it returns; a finaliser on each new
storage sees it go. Sizes are those of the fake storages, which are the real ones.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.tracing.answers import Answers
from jobs.tracing.blocks import Block, Stream, labels_of
from jobs.tracing.repeats import Repeats
from launcher.planner.tracing.events import Event, Kind, Label, Mark
from launcher.planner.types import Phase, TermKind

aten = torch.ops.aten
SILU_GRADIENT = aten.silu_backward.default
ASKED = frozenset(
    {
        aten._local_scalar_dense.default,
        aten.equal.default,
        aten._pin_memory.default,
        aten.is_pinned.default,
    }
)
WAIT = torch.ops._c10d_functional.wait_tensor.default
DEVICE_OF = torch.ops.prim.device.default
META = torch.device("meta")

ScratchBytes = Callable[[Any, tuple[Any, ...], dict[str, Any]], int]
"""Bytes that an operation holds while it runs and frees before it returns, given it and its arguments."""


Expansion = Callable[..., Any]
"""What an operation does inside, in operations that can be recorded."""


class Recorder(TorchDispatchMode):
    """Records the storages of `device`, and those of the host beside it where the device is not the host.

    current_stream: tells the number of the stream in use. scratch_bytes: see ScratchBytes.
    """

    _active: ClassVar[Recorder | None] = None

    def __init__(
        self,
        device: str,
        *,
        current_stream: Callable[[], int] = lambda: 0,
        scratch_bytes: ScratchBytes = lambda *_: 0,
    ) -> None:
        super().__init__()
        self.device = device
        self.main = Stream()
        self.host = Stream() if device != "cpu" else None
        self.blocks: list[Block] = [Block(0, 0, 0, "", (), None)]
        self.marks: list[Mark] = []
        self.phase: Phase | None = None
        self.answers = Answers(asked_through=__file__)
        self.num_operations = 0
        self._numbers: dict[int, int] = {}  # of the storage at an address, as long as it lives
        self._alive: dict[int, int] = {}
        self._is_host: set[int] = set()
        self._pinned: set[int] = set()
        self._made_for: TermKind | None = None
        self.expansions: Mapping[Any, Expansion] = {}
        self._paused = False
        self._repeats = Repeats()
        self._current_stream = current_stream
        self._scratch_bytes = scratch_bytes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's guard against it costs as much as a small operation

    def __enter__(self) -> Recorder:
        self._outer = Recorder._active
        Recorder._active = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Recorder._active = self._outer

    @classmethod
    def active(cls) -> Recorder | None:
        """The one that records now, for what tells it of events that no operation shows."""
        return cls._active

    # What the program tells

    def mark(self, phase: Phase, step: int) -> None:
        """A phase begins."""
        self.phase = phase
        self.marks.append(Mark(phase=phase.value, step=step))
        for stream in self._streams():
            stream.events.append((Kind.MARK, 0, 0, len(self.marks) - 1))

    def empty_cache(self) -> None:
        """torch.cuda.empty_cache() was called."""
        self.main.events.append((Kind.EMPTY_CACHE, 0, 0, 0))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside: the libraries' own computations with shapes, which a run does on meta."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def hold(self, name: str, size_bytes: int, category: TermKind) -> None:
        """Memory that a library takes from the allocator and keeps, with no tensor to show for it."""
        block = self._new_block(name, size_bytes, (), category)
        self._allocate(block.number, size_bytes, block.stream)

    def track(self, tensor: Any, operation: str) -> None:
        """Note the storage of a tensor that no recorded operation made; nothing where it is known already."""
        for part in flat_tensors(tensor):
            self._note(part, operation)

    def resized(self, storage: torch.UntypedStorage, size_bytes: int) -> None:
        """A storage was resized in place, which no operation shows."""
        number = self._numbers.get(storage._cdata)
        if number is not None:
            self._resize(number, size_bytes)

    @contextmanager
    def within(self, category: TermKind) -> Iterator[None]:
        """What is made meanwhile is for `category`, unless it turns out to be something else."""
        outer, self._made_for = self._made_for, category
        try:
            yield
        finally:
            self._made_for = outer

    def categorise(self, tensors: Iterable[Any], category: TermKind) -> None:
        """Say what the storages of some tensors are; the first word about a storage counts."""
        for tensor in tensors:
            for part in flat_tensors(tensor):
                number = self._numbers.get(part.untyped_storage()._cdata)
                if number is not None and self.blocks[number].category is None:
                    self.blocks[number].category = category

    # What torch tells

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE_OF and isinstance(args[0], FakeTensor):
            # Half of all that is dispatched in a ZeRO-3 trace; answered as FakeTensor does (fake_tensor.py).
            return META if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
        if any(map(_is_wrapper, types)):
            return NotImplemented  # a DTensor then runs the same operation on its shard, which comes here
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if func in ASKED:
            return self._reply(func, args, kwargs)
        if func is WAIT:
            return args[0]  # the tensor itself, of which fake tensors make another
        if func in self.expansions:
            with self:
                return self.expansions[func](*args, **kwargs)
        return self._record(func, args, kwargs)

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scratch = self._scratch_bytes(func, args, kwargs)
        if func is SILU_GRADIENT:
            # One kernel on every device; fake tensors take it apart, into four more tensors.
            result = self._repeats.run(aten.empty_like.default, (args[1],), {})
        else:
            result = self._repeats.run(func, args, kwargs)
        self.num_operations += 1
        name = func._schema.name if hasattr(func, "_schema") else str(func)
        self._note_all(result, name)
        if scratch:
            # Between the outputs' allocation and the return: the kernel holds both.
            self._workspace(name, scratch)
        return result

    def _reply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What fake tensors cannot tell, or cannot do."""
        tensor = args[0]
        if func is aten._pin_memory.default:
            return self._pin(tensor)
        if func is aten.is_pinned.default:
            return self._numbers.get(tensor.untyped_storage()._cdata) in self._pinned
        if not isinstance(tensor, FakeTensor):
            return func(*args, **kwargs)
        if func is aten.equal.default:
            self.answers.note("whether two tensors are equal", "yes")
            return True
        return self.answers.value_of(tensor)

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy, which fake tensors cannot make (torch 2.13 fake_impls.py): a plain copy, noted as one."""
        copy = aten.clone.default(tensor)
        self.track(copy, "aten::_pin_memory")
        number = self._numbers.get(copy.untyped_storage()._cdata)
        if number is not None:
            self._pinned.add(number)
        return copy

    # The stream of events

    def _streams(self) -> tuple[Stream, ...]:
        return (self.main,) if self.host is None else (self.main, self.host)

    def _stream_of(self, number: int) -> Stream:
        if number in self._is_host:
            assert self.host is not None
            return self.host
        return self.main

    def _note_all(self, result: Any, operation: str) -> None:
        if type(result) is FakeTensor:
            self._note(result, operation)
        elif isinstance(result, torch.Tensor):
            self.track(result, operation)
        elif isinstance(result, (list, tuple)):
            for part in result:
                self._note_all(part, operation)

    def _note(self, tensor: torch.Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        address, size_bytes = storage._cdata, storage.nbytes()
        number = self._numbers.get(address)
        if number is not None:
            self._resize(number, size_bytes)
            return
        kind = tensor.device.type
        if kind != self.device and (self.host is None or kind != "cpu"):
            return
        block = self._new_block(operation, size_bytes, tuple(tensor.shape), None)
        self._numbers[address] = block.number
        if kind != self.device:
            self._is_host.add(block.number)
            block.stream = 0
        finaliser = weakref.finalize(storage, self._release, block.number, address)
        finaliser.atexit = False
        self._allocate(block.number, size_bytes, block.stream)

    def _new_block(self, operation: str, size_bytes: int, shape: tuple[int, ...], category: TermKind | None) -> Block:
        block = Block(
            len(self.blocks),
            size_bytes,
            self._current_stream(),
            operation,
            shape,
            self.phase,
            category,
            self._made_for,
        )
        self.blocks.append(block)
        return block

    def _allocate(self, number: int, size_bytes: int, stream: int) -> None:
        self._alive[number] = size_bytes
        if not size_bytes:
            return
        into = self._stream_of(number)
        into.events.append((Kind.ALLOCATE, number, size_bytes, stream))
        into.allocated_bytes += size_bytes
        into.peak_bytes = max(into.peak_bytes, into.allocated_bytes)

    def _free(self, number: int) -> None:
        size_bytes = self._alive[number]
        if not size_bytes:
            return
        into = self._stream_of(number)
        into.events.append((Kind.FREE, number, size_bytes, self.blocks[number].stream))
        into.allocated_bytes -= size_bytes

    def _release(self, number: int, address: int) -> None:
        del self._numbers[address]
        if number in self._alive:
            self._free(number)
            del self._alive[number]

    def _resize(self, number: int, size_bytes: int) -> None:
        if self._alive[number] == size_bytes:
            return
        self._free(number)
        self.blocks[number].stream = 0 if number in self._is_host else self._current_stream()
        self._allocate(number, size_bytes, self.blocks[number].stream)

    def _workspace(self, operation: str, size_bytes: int) -> None:
        block = self._new_block(operation, size_bytes, (), TermKind.WORKSPACES)
        self.main.events.append((Kind.WORKSPACE, block.number, size_bytes, block.stream))
        self.main.peak_bytes = max(self.main.peak_bytes, self.main.allocated_bytes + size_bytes)

    # The result

    def labelled(self, category_of: Callable[[Block], TermKind]) -> tuple[tuple[Label, ...], list[Event], list[Event]]:
        """Labels, the device's events and the host's, for a Trace."""
        labels, of_block = labels_of(self.blocks, category_of)
        host = [] if self.host is None else self.host.written(of_block, pinned=self._pinned)
        return labels, self.main.written(of_block), host


@functools.cache
def _is_wrapper(kind: type) -> bool:
    return not issubclass(kind, FakeTensor) and hasattr(kind, "__tensor_flatten__")


def flat_tensors(tensor: Any) -> Iterable[torch.Tensor]:
    """The plain tensors that a tensor consists of: a DTensor's shard, a subclass' parts, or itself."""
    if not isinstance(tensor, torch.Tensor):
        return
    if _is_wrapper(type(tensor)):
        for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            yield from flat_tensors(getattr(tensor, name))
        return
    yield tensor
