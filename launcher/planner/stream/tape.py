"""A tape of allocations, and an autograd so small that it knows only how long each tensor lives.

Code that is written against it reads like the model's own: a tensor lives as long as something refers to it, for its
storage is freed by Python's reference counting, as torch's is. What a node has saved goes when its backward is done.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from launcher.planner.tracing.events import Event, Kind


class Tape:
    """The events in order, and whether a graph is recorded."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.records = True
        self._num_blocks = 0
        self._num_nodes = 0

    def storage(self, size_bytes: int, stream: int = 0) -> Storage:
        """Memory for a tensor, until nothing refers to it any more."""
        self._num_blocks += 1
        return Storage(self, self._num_blocks, size_bytes, stream)

    def scratch(self, size_bytes: int) -> None:
        """What a kernel needs while it runs."""
        if size_bytes:
            self.events.append(Event(kind=Kind.WORKSPACE, size_bytes=size_bytes))

    def leaf(self, size_bytes: int) -> Tensor:
        """A tensor that came from nowhere and needs no gradient."""
        return Tensor(self.storage(size_bytes), None)

    def next_number(self) -> int:
        """Nodes are numbered in the order of the forward pass."""
        self._num_nodes += 1
        return self._num_nodes

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """Record no graph meanwhile."""
        before, self.records = self.records, False
        try:
            yield
        finally:
            self.records = before


class Storage:
    """Bytes that are freed when the last reference goes."""

    __slots__ = ("block", "size_bytes", "stream", "tape")

    def __init__(self, tape: Tape, block: int, size_bytes: int, stream: int) -> None:
        self.tape, self.block, self.size_bytes, self.stream = tape, block, size_bytes, stream
        if size_bytes:
            tape.events.append(Event(kind=Kind.ALLOCATE, block=block, size_bytes=size_bytes, stream=stream))

    def __del__(self) -> None:
        if self.size_bytes:
            event = Event(kind=Kind.FREE, block=self.block, size_bytes=self.size_bytes, stream=self.stream)
            self.tape.events.append(event)


# From the gradient of a node's output and what it saved to the gradients of its inputs, None for one without.
Backward = Callable[[Storage, "tuple[Storage, ...]"], Sequence["Storage | None"]]


class Node:
    """An operation in the graph."""

    __slots__ = ("backward", "inputs", "number", "saved")

    def __init__(self, number: int, inputs: Sequence[Tensor], saved: tuple[Storage, ...], backward: Backward) -> None:
        self.number = number
        self.inputs = [tensor.node for tensor in inputs]
        self.saved = saved
        self.backward = backward


class Tensor:
    """A storage and the node that made it; node is None where no gradient is wanted."""

    __slots__ = ("node", "storage")

    def __init__(self, storage: Storage, node: Node | None) -> None:
        self.storage, self.node = storage, node

    @property
    def size_bytes(self) -> int:
        return self.storage.size_bytes


def operation(
    tape: Tape,
    size_bytes: int,
    inputs: Sequence[Tensor],
    *,
    saved: Sequence[Tensor] = (),
    saves_output: bool = False,
    extra_saved: Sequence[Storage] = (),
    backward_scratch_bytes: int = 0,
    wants_gradient: bool = False,
    on_backward: Callable[[], None] | None = None,
) -> Tensor:
    """A new tensor computed from others. Its backward pass makes one gradient as large as each input that needs one.

    wants_gradient: a parameter inside needs one, whatever the inputs do. on_backward: what that leaves behind.
    """
    output = tape.storage(size_bytes)
    if not tape.records or not (wants_gradient or any(tensor.node for tensor in inputs)):
        return Tensor(output, None)
    sizes = [tensor.size_bytes if tensor.node else None for tensor in inputs]

    def backward(_: Storage, __: tuple[Storage, ...]) -> list[Storage | None]:
        scratch = tape.storage(backward_scratch_bytes)
        found = [None if size is None else tape.storage(size) for size in sizes]
        del scratch
        if on_backward is not None:
            on_backward()
        return found

    kept = (*(tensor.storage for tensor in saved), *((output,) if saves_output else ()), *extra_saved)
    return Tensor(output, Node(tape.next_number(), inputs, kept, backward))


def root(tape: Tape, storage: Storage) -> Tensor:
    """A tensor whose gradient stops here, to be asked for."""
    return Tensor(storage, Node(tape.next_number(), (), (), lambda _, __: ()))


def run_backward(output: Tensor, gradient: Storage, wanted: Node | None = None) -> Storage | None:
    """Go through the graph from its end. Gradients of one node are added in place, as torch's engine does where
    nothing else refers to them. Returns the gradient of `wanted`."""
    if output.node is None:
        return None
    gradients = {output.node.number: gradient}
    nodes = {output.node.number: output.node}
    waiting = [-output.node.number]
    del gradient
    while waiting:
        number = -heapq.heappop(waiting)
        node, incoming = nodes.pop(number), gradients.pop(number)
        if node is wanted:
            return incoming
        outgoing = list(node.backward(incoming, node.saved))
        node.saved = ()
        del incoming
        for target in reversed(node.inputs):
            found = outgoing.pop()
            if target is None or found is None:
                continue
            if target.number not in nodes:
                nodes[target.number] = target
                gradients[target.number] = found
                heapq.heappush(waiting, -target.number)
            del found
    return None


def checkpoint(
    tape: Tape,
    function: Callable[[Tensor], Tensor],
    given: Tensor,
    *,
    before_backward: Callable[[], None] = lambda: None,
    after_backward: Callable[[], None] = lambda: None,
) -> Tensor:
    """Keep the input alone and compute the rest again in the backward pass (torch.utils.checkpoint)."""
    if not tape.records or given.node is None:
        return function(given)
    with tape.no_grad():
        output = function(given).storage

    def backward(incoming: Storage, held: tuple[Storage, ...]) -> list[Storage | None]:
        before_backward()
        again = root(tape, held[0])
        found = [run_backward(function(again), incoming, again.node)]
        after_backward()
        return found

    return Tensor(output, Node(tape.next_number(), (given,), (given.storage,), backward))
