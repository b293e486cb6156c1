"""The CPU's memory measurement against allocations whose sizes are known."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
import torch
import torch.distributed
from safetensors.torch import load_file, save_file

from jobs.cpu_memory import (
    SETTLE,
    SETTLED,
    Blocks,
    CpuRecorder,
    Levels,
    Mark,
    StretchMemory,
    count_allocations,
    settle,
    settling,
)
from jobs.memory import NUM_RECORDED_STEPS, CpuMeter, peak_rss_bytes, write_detailed
from launcher.planner.types import Phase
from launcher.units import MIB

MARK_BYTES = 1  # of the tensor that stands for the beginning of a phase


def zeros(num_mib: int) -> torch.Tensor:
    return torch.zeros(num_mib * MIB, dtype=torch.uint8)


def only(stretches: list[StretchMemory]) -> StretchMemory:
    assert len(stretches) == 1
    return stretches[0]


def test_a_stretch_has_its_beginning_its_peak_and_its_end() -> None:
    count_allocations()
    before = zeros(7)
    recorder = CpuRecorder()
    recorder.begin(Phase.FORWARD, 3)
    kept = zeros(2)
    passing = zeros(3)
    del passing, before
    kept_too = zeros(1)
    stretch = only(Levels().follow(recorder.finish()))
    assert (stretch.phase, stretch.step) == (Phase.FORWARD, 3)
    assert stretch.peak_bytes - stretch.begin_bytes == 5 * MIB - MARK_BYTES
    assert stretch.end_bytes - stretch.begin_bytes == (2 - 7 + 1) * MIB - MARK_BYTES
    assert stretch.largest[0] == Blocks(operation="aten::empty", size_bytes=3 * MIB, count=1)
    del kept, kept_too


def test_a_phase_begins_with_what_the_one_before_has_left() -> None:
    count_allocations()
    recorder = CpuRecorder()
    recorder.begin(Phase.FORWARD, 1)
    kept = zeros(2)
    recorder.begin(Phase.BACKWARD, 1)
    del kept
    recorder.begin(Phase.OPTIMIZER, 1)
    forward, backward, optimizer = Levels().follow(recorder.finish())
    assert backward.begin_bytes == backward.peak_bytes == forward.begin_bytes + 2 * MIB
    assert optimizer.begin_bytes == forward.begin_bytes


def test_what_other_threads_free_is_counted_and_named() -> None:
    count_allocations()
    box = [zeros(4)]
    recorder = CpuRecorder()
    recorder.begin(Phase.BACKWARD, 1)
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    recorder.begin(Phase.OPTIMIZER, 1)
    recorder.begin(Phase.FORWARD, 2)
    backward, optimizer, _ = Levels().follow(recorder.finish())
    assert optimizer.begin_bytes == backward.begin_bytes - 4 * MIB
    assert (backward.freed_elsewhere_bytes, optimizer.freed_elsewhere_bytes) == (4 * MIB, 0)


def test_mapped_files_are_part_of_it_while_a_tensor_needs_them(tmp_path: Path) -> None:
    count_allocations()
    path = tmp_path / "model.safetensors"
    save_file({"a": zeros(3), "b": zeros(1)}, path)
    recorder = CpuRecorder()
    recorder.begin(Phase.LOAD, 0)
    loaded = load_file(path)
    del loaded["a"]
    recorder.begin(Phase.WRAP, 0)
    loaded.clear()
    recorder.begin(Phase.FORWARD, 1)
    load, wrap, forward = Levels().follow(recorder.finish())
    assert load.mapped_bytes == wrap.mapped_bytes == path.stat().st_size
    assert load.end_bytes == load.begin_bytes + path.stat().st_size - MARK_BYTES
    assert forward.begin_bytes == load.begin_bytes


def run_steps(meter: CpuMeter, num_steps: int) -> None:
    """Steps that need 2 MiB, 3 MiB, 4 MiB and so on, each given a hundred tokens more than its number."""
    for step in range(1, num_steps + 1):
        meter.begin(Phase.FORWARD, step)
        zeros(step + 1)
        meter.begin(Phase.OPTIMIZER, step)
        meter.note_step(step, 100 + step)
    meter.begin(Phase.EVALUATION, num_steps)
    zeros(100)


def test_the_first_steps_are_measured_and_the_very_first_apart() -> None:
    meter = CpuMeter()
    meter.begin(Phase.LOAD, 0)
    kept = zeros(1)
    zeros(50)
    meter.begin(Phase.WRAP, 0)
    run_steps(meter, NUM_RECORDED_STEPS + 2)
    measured = meter.measurement(rank=1)
    assert list(measured.by_phase) == ["load", "wrap", "first step", "forward", "optimizer"]
    level = measured.by_phase["wrap"] - MARK_BYTES
    assert measured.by_phase["load"] == level + 50 * MIB
    assert measured.by_phase["first step"] == level + 2 * MIB
    assert measured.by_phase["forward"] == measured.allocated_bytes == level + (NUM_RECORDED_STEPS + 1) * MIB
    assert measured.num_tokens_measured_step == 100 + NUM_RECORDED_STEPS
    assert (measured.rank, measured.device, measured.reserved_bytes) == (1, "cpu", None)
    assert 50 * MIB < measured.rss_bytes <= peak_rss_bytes()
    del kept


@pytest.mark.parametrize("everything", [False, True])
def test_all_of_a_job_is_recorded_where_that_is_asked_for(everything: bool, tmp_path: Path) -> None:
    meter = CpuMeter(everything=everything)
    run_steps(meter, NUM_RECORDED_STEPS + 1)
    measured = meter.measurement(rank=0)
    assert ("evaluation" in measured.by_phase) == everything
    path = tmp_path / "memory.json"
    write_detailed(meter, path)
    assert path.exists() == everything
    if everything:
        stretches = msgspec.json.decode(path.read_bytes(), type=list[StretchMemory])
        assert stretches == meter.stretches
        assert [s.step for s in stretches] == [1, 1, 2, 2, 3, 3, 4, 4, 4]


def test_a_job_without_a_step_has_no_tokens() -> None:
    meter = CpuMeter()
    meter.begin(Phase.LOAD, 0)
    assert meter.measurement(rank=0).num_tokens_measured_step is None


def test_what_is_freed_late_belongs_to_no_phase() -> None:
    count_allocations()
    box = [zeros(4)]
    recorder = CpuRecorder()
    recorder.begin(Phase.BACKWARD, 1)
    timer = threading.Timer(0.1, box.clear)
    timer.start()
    settle(1.0)
    kept = zeros(1)
    backward = only(Levels().follow(recorder.finish()))
    assert backward.late_bytes == backward.freed_elsewhere_bytes == 4 * MIB
    assert backward.peak_bytes == backward.begin_bytes
    assert backward.end_bytes == backward.begin_bytes - 3 * MIB - MARK_BYTES
    del kept


def test_a_collective_is_settled_when_it_is_over(tmp_path: Path) -> None:
    count_allocations()
    tensor = zeros(1)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        recorder = CpuRecorder()
        recorder.begin(Phase.BACKWARD, 1)
        with settling(0.001):
            torch.distributed.all_reduce(tensor)
            work = torch.distributed.all_reduce(tensor, async_op=True)
            work.wait()
        torch.distributed.all_reduce(tensor)
        marks = [entry.name for entry in recorder.finish() if isinstance(entry, Mark)]
    finally:
        torch.distributed.destroy_process_group()
    assert marks == ["fitlaunch phase backward/1", *[SETTLE, SETTLED] * 2]


def test_without_a_count_nothing_is_measured_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    assert not count_allocations()
    meter = CpuMeter()
    run_steps(meter, NUM_RECORDED_STEPS)
    measured = meter.measurement(rank=0)
    assert (measured.allocated_bytes, measured.by_phase) == (0, {})
    assert measured.rss_bytes > 50 * MIB
