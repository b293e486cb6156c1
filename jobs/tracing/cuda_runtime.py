"""torch.cuda without a driver: streams that have numbers, and the properties and memory of the planned GPU.

Only what the libraries of a job call is there. An attribute of the device that nobody put in raises AttributeError, so
that a library which begins to decide by it is noticed (torch 2.13, accelerate 1.15, deepspeed 0.19.8).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from jobs.tracing.recorder import Recorder
from jobs.tracing.target import Target

CUDA_VERSION = "13.0"  # of torch 2.13's default build; transformers asks for it before it allows TF32
NCCL_VERSION = (2, 29, 7)  # torch 2.13's; DeepSpeed asks whether it knows bf16, which all since 2.10 do


class Stream:
    """A stream is the number of the allocator's pool that it allocates from; work on it is never waited for."""

    num_streams = 0
    current: Stream

    device_index = 0
    device_type = 1
    priority = 0

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.number = Stream.num_streams
        Stream.num_streams += 1
        self._outer: list[Stream] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    @property
    def stream_id(self) -> int:
        return self.number

    cuda_stream = stream_id

    def wait_stream(self, _stream: Any) -> None: ...
    def wait_event(self, _event: Any) -> None: ...
    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> Stream:
        self._outer.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *_: Any) -> None:
        Stream.current = self._outer.pop()


class Event:
    """A point in a stream: always reached."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 1.0


def current_stream_number() -> int:
    """The pool that an allocation now comes from."""
    return Stream.current.number


def install(target: Target, recorder: Callable[[], Recorder | None]) -> None:
    """Answer for the GPU of `target`. recorder() is told of an emptied cache, and knows what is allocated."""
    default = Stream()
    Stream.current = default
    cuda = torch.cuda
    properties = SimpleNamespace(
        name=target.device.name,
        major=target.capability[0],
        minor=target.capability[1],
        total_memory=target.memory_bytes,
    )

    def allocated(*_: Any, **__: Any) -> int:
        found = recorder()
        return found.main.allocated_bytes if found is not None else 0

    def empty_cache() -> None:
        found = recorder()
        if found is not None:
            found.empty_cache()

    replaced: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "_exchange_device": _number(),
        "_lazy_init": _nothing(),
        "_maybe_exchange_device": _number(),
        "current_device": lambda: target.local_rank,
        "current_stream": lambda *_: Stream.current,
        "default_stream": lambda *_: default,
        "device_count": lambda: target.spec.gpus_per_node,
        "empty_cache": empty_cache,
        "get_device_capability": lambda *_: target.capability,
        "get_device_name": lambda *_: target.device.name,
        "get_device_properties": lambda *_: properties,
        "get_rng_state": lambda *_, **__: torch.empty(16, dtype=torch.uint8, device="cpu"),
        "get_rng_state_all": lambda: [torch.empty(16, dtype=torch.uint8, device="cpu")],
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: target.capability >= (8, 0),
        "is_current_stream_capturing": lambda: False,
        "is_initialized": lambda: True,
        "manual_seed": _nothing(),
        "manual_seed_all": _nothing(),
        "max_memory_allocated": allocated,
        "max_memory_reserved": allocated,
        "mem_get_info": lambda *_: (target.memory_bytes - allocated(), target.memory_bytes),
        "memory_allocated": allocated,
        "memory_reserved": allocated,
        "memory_stats": lambda *_: {},
        "reset_max_memory_allocated": _nothing(),
        "reset_max_memory_cached": _nothing(),
        "reset_peak_memory_stats": _nothing(),
        "set_device": _nothing(),
        "set_rng_state": _nothing(),
        "set_rng_state_all": _nothing(),
        "set_stream": _set_stream,
        "stream": lambda stream: stream if stream is not None else contextlib.nullcontext(),
        "synchronize": _nothing(),
    }
    for name, value in replaced.items():
        assert hasattr(cuda, name), f"torch.cuda.{name} is gone: what replaced it must be answered too"
        setattr(cuda, name, value)
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, _number())
    torch.version.cuda = torch.version.cuda or CUDA_VERSION
    cuda.nccl.version = lambda: NCCL_VERSION
    for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"):
        if not hasattr(torch._C, name):
            setattr(torch._C, name, _number())
    torch._C._get_accelerator = lambda *_: torch.device("cuda")  # FSDP2 makes its default mesh for it
    torch.Stream, torch.Event = Stream, Event  # type: ignore[misc, assignment]
    torch.accelerator.current_stream = lambda *_: Stream.current  # type: ignore[assignment, return-value]
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("cuda")
    torch.accelerator.is_available = lambda: True
    # A block used on another stream is freed when that stream has caught up, which here is at once.
    torch.Tensor.record_stream = FakeTensor.record_stream = _nothing()  # type: ignore[assignment, method-assign]
    # FakeTensorMode would ask a CUDA device to exist before it makes a tensor for it.
    FakeTensorMode.avoid_device_init = property(lambda _self: True)  # type: ignore[assignment]


# Each a function of its own: torch._dynamo keeps a table of torch's functions and takes none of them twice.


def _nothing() -> Callable[..., None]:
    return lambda *_, **__: None


def _number() -> Callable[..., int]:
    return lambda *_, **__: 0


def _set_stream(stream: Stream) -> None:
    Stream.current = stream
