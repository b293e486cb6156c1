"""DistributedDataParallel on fake tensors: its C++ reducer reads data in three places (torch 2.13).

- It verifies the parameters' shapes over all ranks by their values: left out, for there is one rank.
- It reduces buckets asynchronously and divides them by the world size: a communication hook returns each bucket as it
  is, which keeps the same buckets alive for the same time.
- After the first synchronised backward pass it puts its one bucket anew into several, in the order in which gradients
  came, and tells the other ranks. All old buckets go before the new ones come, and together they are as large: the
  bucket stays.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.parallel.distributed as ddp

from jobs.tracing.recorder import Recorder
from launcher.planner.types import TermKind

REBUILT = (
    "DDP keeps its first bucket, where a run splits it into several of the same size together after the first step"
)


def install(note: Callable[[str], None], recorder: Callable[[], Recorder | None]) -> None:
    """Let DistributedDataParallel wrap fake parameters. note(sentence) is told what is left out."""
    assert hasattr(ddp, "_verify_param_shape_across_processes")
    ddp._verify_param_shape_across_processes = lambda *_, **__: None
    original = ddp.DistributedDataParallel.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        recording = recorder()
        with nullcontext() if recording is None else recording.within(TermKind.SHARDING_BUFFERS):
            original(self, *args, **kwargs)
        note(REBUILT)
        self.logger = _Silent()
        self.__dict__["reducer"] = _Reducer(self.reducer)
        self.register_comm_hook(None, _keep_bucket)

    ddp.DistributedDataParallel.__init__ = initialise  # type: ignore[method-assign]


def _keep_bucket(_state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations other than its own
    future: Any = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


class _Silent:
    """DDP's logger, which would time CUDA events."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_, **__: None


class _Reducer:
    """The C++ reducer without the rebuilding of its buckets."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False
