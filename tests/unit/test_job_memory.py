"""The CPU's memory measurement against allocations whose sizes are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from jobs.callbacks import RECORDED_STEP, Memory
from jobs.memory import MemoryMeter, StepRecorder, live_storage_bytes, peak_rss_bytes
from launcher.units import MIB


def test_counts_each_storage_once() -> None:
    before = live_storage_bytes()
    whole = torch.zeros(MIB, dtype=torch.float32)
    views = [whole[:10], whole.view(2, -1)]
    assert live_storage_bytes() - before == 4 * MIB
    del whole, views
    assert live_storage_bytes() == before


def test_records_the_peak_of_a_step_on_top_of_what_was_alive() -> None:
    model = nn.Linear(1024, 1024, bias=False)
    alive = live_storage_bytes()
    assert alive >= 4 * MIB
    recorder = StepRecorder(model)
    kept = torch.zeros(2 * MIB, dtype=torch.float32)
    passing = torch.zeros(3 * MIB, dtype=torch.float32)
    del passing
    again = torch.zeros(MIB, dtype=torch.float32)
    peak = recorder.finish()
    assert peak - alive == 4 * (2 + 3) * MIB
    del kept, again


def test_a_measurement_on_cpu_has_no_reserved_bytes() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    meter.end_phase("load")
    meter.note_step(5)
    meter.note_step(3)
    measured = meter.measurement(rank=1)
    assert (measured.rank, measured.allocated_bytes, measured.reserved_bytes) == (1, 5, None)
    assert measured.by_phase == {"step": 5}
    assert 50 * MIB < measured.rss_bytes <= peak_rss_bytes()


def test_a_measurement_on_cpu_says_how_many_tokens_its_step_held() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    trainer: Any = SimpleNamespace(model_wrapped=nn.Linear(2, 2), step_tokens=0)
    memory = Memory(meter, trainer)
    nothing: Any = None
    for step in range(1, RECORDED_STEP + 2):
        trainer.step_tokens = 100 + step
        memory.on_step_begin(nothing, nothing, nothing)
        memory.on_step_end(nothing, nothing, nothing)
        if step < RECORDED_STEP:
            assert meter.measurement(rank=0).num_tokens_measured_step is None
    assert meter.measurement(rank=0).num_tokens_measured_step == 100 + RECORDED_STEP
