"""How much memory a rank really used, in the terms of the plan: by phase, and the peak over all.

On CUDA the allocator keeps peaks by itself. On CPU it does not, so loading, wrapping and the first steps are recorded.
"""

from __future__ import annotations

import resource
import socket
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from jobs.cpu_memory import CpuRecorder, Levels, StretchMemory, count_allocations, settle, settling
from launcher.planner.types import Phase
from launcher.runs.records import RankMeasurement, write_record
from launcher.units import KIB

STEP_PHASES = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)
# The first makes the optimizer's states, DDP rebuilds its buckets in the second, the third is like all that follow.
NUM_RECORDED_STEPS = 3
# A thread of gloo only has to be given a core. A step may have hundreds of collectives, and few phases.
SETTLE_COLLECTIVE_S = 0.004
SETTLE_PHASE_S = 0.05


class MemoryMeter(ABC):
    """Peaks of one rank by phase. begin() is told of every phase and note_step() of the end of every step."""

    def __init__(self) -> None:
        self._by_phase: dict[Phase, int] = {}
        self._first_step: int | None = None

    def begin(self, phase: Phase, step: int) -> None:
        """A phase begins, and the one before it is over."""
        if phase in STEP_PHASES and self._first_step is None:
            self._first_step = step
        self._begin(phase, step)

    @abstractmethod
    def _begin(self, phase: Phase, step: int) -> None: ...

    def note_step(self, step: int, num_tokens: int) -> None:
        """A step is over, in which this rank was given so many tokens."""
        del step, num_tokens

    @abstractmethod
    def measurement(self, rank: int) -> RankMeasurement:
        """All peaks, in bytes. Nothing is measured after it."""

    def _note(self, phase: Phase, step: int, peak_bytes: int) -> None:
        """The first step of an attempt is a phase of its own: it starts without optimizer states."""
        if phase in STEP_PHASES and step == self._first_step:
            phase = Phase.FIRST_STEP
        self._by_phase[phase] = max(self._by_phase.get(phase, 0), peak_bytes)

    def _measurement(self, rank: int, **of_device: Any) -> RankMeasurement:
        return RankMeasurement(
            rank=rank,
            host=socket.gethostname(),
            rss_bytes=peak_rss_bytes(),
            by_phase={phase.value: self._by_phase[phase] for phase in Phase if phase in self._by_phase},
            **of_device,
        )


class CudaMeter(MemoryMeter):
    """Asks the caching allocator, which keeps peaks until they are reset."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._reserved_bytes = 0
        self._current: tuple[Phase, int] | None = None
        torch.cuda.reset_peak_memory_stats(device)

    def _begin(self, phase: Phase, step: int) -> None:
        self._end()
        self._current = (phase, step)

    def _end(self) -> None:
        if self._current is not None:
            self._note(*self._current, torch.cuda.max_memory_allocated(self._device))
        self._reserved_bytes = max(self._reserved_bytes, torch.cuda.max_memory_reserved(self._device))
        torch.cuda.reset_peak_memory_stats(self._device)

    def measurement(self, rank: int) -> RankMeasurement:
        """All peaks, in bytes."""
        self._end()
        return self._measurement(
            rank,
            allocated_bytes=max(self._by_phase.values(), default=0),
            device=torch.cuda.get_device_name(self._device),
            reserved_bytes=self._reserved_bytes,
            process_bytes=_cuda_process_bytes(self._device),
        )


class CpuMeter(MemoryMeter):
    """Records loading, wrapping and the first steps.

    everything: record the whole job, and let gloo free what it holds before going on after a collective.
    """

    def __init__(self, *, everything: bool = False) -> None:
        super().__init__()
        self._counts = count_allocations()
        self.everything = everything
        self._settling = ExitStack()
        if everything:
            self._settling.enter_context(settling(SETTLE_COLLECTIVE_S))
        self._recorder: CpuRecorder | None = None
        self._levels = Levels()
        self._num_tokens: dict[int, int] = {}
        self.stretches: list[StretchMemory] = []

    def _begin(self, phase: Phase, step: int) -> None:
        if not self._is_recorded(phase, step):
            self._finish()
            return
        if self.everything and self._recorder is not None:
            settle(SETTLE_PHASE_S)
        if self._recorder is None:
            self._recorder = CpuRecorder()
        self._recorder.begin(phase, step)

    def _is_recorded(self, phase: Phase, step: int) -> bool:
        if not self._counts:
            return False
        if self.everything or phase in (Phase.LOAD, Phase.WRAP):
            return True
        return phase in STEP_PHASES and step < (self._first_step or 0) + NUM_RECORDED_STEPS

    def _finish(self) -> None:
        if self._recorder is None:
            return
        found = self._levels.follow(self._recorder.finish())
        self._recorder = None
        for stretch in found:
            self._note(stretch.phase, stretch.step, stretch.peak_bytes)
        self.stretches += found

    def note_step(self, step: int, num_tokens: int) -> None:
        """A step is over, in which this rank was given so many tokens."""
        self._num_tokens[step] = num_tokens

    def measurement(self, rank: int) -> RankMeasurement:
        """All peaks, in bytes. The highest is that of the steps: weights that are being loaded are mapped files, whose
        pages the kernel can take back. The tokens are those of the step that needed the most."""
        self._finish()
        self._settling.close()
        steps = [stretch for stretch in self.stretches if stretch.phase in STEP_PHASES]
        most = max(steps, key=lambda stretch: stretch.peak_bytes, default=None)
        return self._measurement(
            rank,
            allocated_bytes=0 if most is None else most.peak_bytes,
            device="cpu",
            reserved_bytes=None,
            process_bytes=peak_rss_bytes(),
            num_tokens_measured_step=None if most is None else self._num_tokens.get(most.step),
        )


def memory_meter(device: torch.device, *, everything: bool = False) -> MemoryMeter:
    """The meter for a device. everything: on CPU, record the whole job and not only what is needed for a report."""
    return CudaMeter(device) if device.type == "cuda" else CpuMeter(everything=everything)


def write_detailed(meter: MemoryMeter, path: Path) -> None:
    """Leave what was recorded of the whole job, stretch by stretch, where that was asked for."""
    if isinstance(meter, CpuMeter) and meter.everything:
        write_record(path, meter.stretches)


def peak_rss_bytes() -> int:
    """The most host memory this process ever held (getrusage; KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _cuda_process_bytes(device: torch.device) -> int | None:
    """What the driver shows as used on this device, all processes together; None where it cannot be asked."""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return None
    return total - free
