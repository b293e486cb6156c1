"""How much memory a rank really used, in the terms of the plan: by phase, and the peak over all.

On CUDA the allocator keeps peaks by itself. On CPU it does not, so one steady step is recorded by the profiler, and
its peak is put on top of the storages alive when the step begins.
"""

from __future__ import annotations

import gc
import resource
import socket
from typing import Any

import torch
from torch import nn

from launcher.runs.records import RankMeasurement
from launcher.units import KIB


class MemoryMeter:
    """Peaks of one rank, phase by phase."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._by_phase: dict[str, int] = {}
        self._reserved_bytes = 0
        self.num_tokens_measured_step: int | None = None
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)

    def end_phase(self, phase: str) -> None:
        """Note the peak since the last phase ended. Nothing on CPU, where only the recorded step counts."""
        if not self._cuda:
            return
        self._note(phase, torch.cuda.max_memory_allocated(self._device))
        self._reserved_bytes = max(self._reserved_bytes, torch.cuda.max_memory_reserved(self._device))
        torch.cuda.reset_peak_memory_stats(self._device)

    def note_step(self, allocated_bytes: int) -> None:
        """Note the peak of a step recorded on CPU."""
        self._note("step", allocated_bytes)

    @property
    def is_cpu(self) -> bool:
        """Whether a step has to be recorded."""
        return not self._cuda

    def measurement(self, rank: int) -> RankMeasurement:
        """All peaks, in bytes."""
        return RankMeasurement(
            rank=rank,
            host=socket.gethostname(),
            device=torch.cuda.get_device_name(self._device) if self._cuda else "cpu",
            allocated_bytes=max(self._by_phase.values(), default=0),
            reserved_bytes=self._reserved_bytes if self._cuda else None,
            process_bytes=_cuda_process_bytes(self._device) if self._cuda else peak_rss_bytes(),
            rss_bytes=peak_rss_bytes(),
            by_phase=dict(self._by_phase),
            num_tokens_measured_step=self.num_tokens_measured_step,
        )

    def _note(self, phase: str, peak_bytes: int) -> None:
        self._by_phase[phase] = max(self._by_phase.get(phase, 0), peak_bytes)


class StepRecorder:
    """Records every allocation of one step on CPU."""

    def __init__(self, model: nn.Module) -> None:
        self._alive_bytes = live_storage_bytes() + _ddp_bucket_bytes(model)
        self._profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )
        self._profiler.start()

    def finish(self) -> int:
        """Stop recording. The step's peak in bytes: what was alive when it began, and the most that came on top."""
        self._profiler.stop()
        return self._alive_bytes + peak_of_events(self._profiler)


def peak_of_events(profiler: Any) -> int:
    """The highest running total of the allocations and frees that the profiler saw, in bytes."""
    results = profiler.profiler.kineto_results
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU
    )
    running = peak = 0
    for _, num_bytes in changes:
        running += num_bytes
        peak = max(peak, running)
    return peak


def live_storage_bytes() -> int:
    """Bytes of all CPU tensor storages that Python objects reach, each counted once."""
    seen: dict[int, int] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.Tensor):  # isinstance() would ask proxies for their class
            continue
        local = getattr(thing, "_local_tensor", thing)
        for tensor in (local, local.grad if local.is_leaf else None):
            if tensor is None or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            if pointer := storage.data_ptr():
                seen[pointer] = storage.nbytes()
    return sum(seen.values())


def peak_rss_bytes() -> int:
    """The most host memory this process ever held (getrusage; KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _ddp_bucket_bytes(model: nn.Module) -> int:
    """DDP's flat gradient buckets, which live in C++: as large as the gradients, unless these are views into them."""
    if type(model).__name__ != "DistributedDataParallel" or model.gradient_as_bucket_view:
        return 0
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _cuda_process_bytes(device: torch.device) -> int | None:
    """What the driver shows as used on this device, all processes together; None where it cannot be asked."""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return None
    return total - free
