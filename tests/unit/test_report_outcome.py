"""The last screen of a run held against goldens, and the record behind it with exact numbers."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from launcher.planner.types import Verdict
from launcher.report.console import make_console
from launcher.report.outcome import furthest_off, length_words, off_words, show_outcome, write_report
from launcher.report.record import RankMemory, Report, rank_memory
from launcher.report.sweep_table import CellResult, short_keys, show_results
from launcher.runs.diagnosis.read import read_diagnosis
from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Outcome
from launcher.runs.records import Status
from launcher.spec import JobSpec, MethodKind, MethodSpec, ShardKind
from launcher.units import GIB, KIB, MIB
from tests.report_fixtures import CPU, measurement, plan, rank_plan, run_folder, spec

Golden = Callable[[str, str], None]
RUN_ID = "20260101-120000-tiny-lora-zero3-00ff"
ON_GPU = spec(gpus_per_node=4)
ON_CPU = spec(method=MethodSpec(kind=MethodKind.FULL), device=CPU, gpus_per_node=2, shard=ShardKind.DDP)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run's folder is to be, seen from the working directory, so that a screen shows no path of this host."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / RUN_ID


def shown(outcome: Outcome, job: JobSpec) -> str:
    out = io.StringIO()
    show_outcome(outcome, write_report(outcome), job, make_console(out))
    return out.getvalue()


@pytest.mark.parametrize("status", [Status.FINISHED, Status.STOPPED, Status.FAILED])
def test_outcome_on_gpus(status: Status, run_dir: Path, golden: Golden) -> None:
    golden(f"report/outcome-{status}.txt", shown(run_folder(run_dir, ON_GPU, status=status), ON_GPU))


def test_outcome_on_a_cpu(run_dir: Path, golden: Golden) -> None:
    run_dir = run_dir.with_name("20260101-120000-tiny-full-ddp-00ff")
    outcome = run_folder(run_dir, ON_CPU, status=Status.FINISHED, gpu=False)
    short = [dataclasses.replace(m, num_tokens_measured_step=1024 * (m.rank + 3)) for m in outcome.measurements]
    golden("report/outcome-cpu.txt", shown(dataclasses.replace(outcome, measurements=tuple(short)), ON_CPU))


def test_the_report_is_left_in_the_run_folder(run_dir: Path) -> None:
    outcome = run_folder(run_dir, ON_GPU, status=Status.FINISHED)
    report = write_report(outcome)
    folder = RunFolder(run_dir)
    assert msgspec.json.decode(folder.report.read_bytes(), type=Report) == report
    assert folder.loss_curve.read_bytes().startswith(b"\x89PNG")
    assert (report.step, report.num_steps, report.eval_loss_before, report.eval_loss_after) == (20, 20, 3.0, 1.2)
    assert (report.num_parameters, report.num_trainable_parameters) == (655_680 + 4_096, 4_096)
    assert report.num_tokens_planned_step == 4 * 4 * 1024
    assert [memory.rank for memory in report.memory] == [0, 1, 2, 3]


def test_an_unfinished_run_is_reported_as_far_as_it_got(run_dir: Path) -> None:
    report = write_report(run_folder(run_dir, ON_GPU, status=Status.FAILED))
    assert (report.step, report.num_steps, report.train_loss) == (12, 20, pytest.approx(3.0 * 0.95**12))
    assert (report.eval_loss_before, report.eval_loss_after, report.train_time_s) == (3.0, None, None)
    assert (report.result, report.checkpoint, report.memory) == (None, None, ())


# Planned beside measured

LOSS_PEAK = 13 * GIB + 256 * MIB + 300 * KIB  # 3 + 0.25 of weights, 4 of activations, 6 of logits, 300 KiB of prefetch
RESERVE = 256 * MIB
OUTSIDE = 512 * MIB


def test_a_gpu_is_compared_with_the_peak_of_all_phases() -> None:
    ranks = (rank_plan((0,), saves=True), rank_plan((1, 2, 3)))
    value = plan(ON_GPU, ranks=ranks)
    first, second = (rank_memory(value, measurement(rank, gpu=True)) for rank in (0, 1))
    saving = 15 * GIB + 256 * MIB
    assert (first.planned_allocated_bytes, first.planned_reserved_bytes) == (saving, saving + RESERVE)
    assert second == RankMemory(
        rank=1,
        host="alpha",
        planned_allocated_bytes=LOSS_PEAK,
        measured_allocated_bytes=13 * GIB + 512 * MIB,
        planned_reserved_bytes=LOSS_PEAK + RESERVE,
        measured_reserved_bytes=14 * GIB,
        planned_process_bytes=LOSS_PEAK + RESERVE + OUTSIDE,
        measured_process_bytes=14 * GIB + 512 * MIB,
        measured_rss_bytes=2 * GIB,
        num_tokens_measured_step=None,
    )


def test_a_cpu_is_compared_over_its_first_steps_and_its_resident_set_with_the_process() -> None:
    value = plan(ON_CPU, ranks=(rank_plan((0, 1), saves=True),))
    memory = rank_memory(value, measurement(1, gpu=False))
    assert memory.planned_allocated_bytes == LOSS_PEAK
    assert memory.planned_process_bytes == 15 * GIB + 256 * MIB + OUTSIDE
    assert (memory.planned_reserved_bytes, memory.measured_reserved_bytes) == (None, None)
    assert memory.measured_process_bytes == memory.measured_rss_bytes == 13 * GIB + 768 * MIB


def test_off_is_in_per_cent_of_what_was_measured() -> None:
    assert off_words(110, 100) == "+10.0 %"
    assert off_words(75, 100) == "-25.0 %"
    assert off_words(100, 100) == "+0.0 %"
    assert (off_words(None, 100), off_words(100, None), off_words(100, 0)) == ("", "", "")


def test_the_ranks_furthest_from_the_plan_are_shown() -> None:
    template = rank_memory(plan(ON_GPU), measurement(0, gpu=True))
    measured = {0: 100, 1: 50, 2: 99, 3: 180, 4: 101}
    memory = tuple(
        dataclasses.replace(template, rank=rank, planned_allocated_bytes=100, measured_allocated_bytes=size)
        for rank, size in measured.items()
    )
    assert [m.rank for m in furthest_off(memory, 2)] == [1, 3]
    assert furthest_off(memory, 8) == memory


def test_shorter_sequences_than_planned_are_said_plainly(run_dir: Path) -> None:
    report = write_report(run_folder(run_dir, ON_GPU, status=Status.FINISHED))
    packed = dataclasses.replace(ON_GPU, train=dataclasses.replace(ON_GPU.train, packing=True))

    def with_tokens(*counts: int | None) -> Report:
        pairs = zip(report.memory, counts, strict=False)
        memory = tuple(dataclasses.replace(m, num_tokens_measured_step=count) for m, count in pairs)
        return dataclasses.replace(report, memory=memory)

    assert length_words(with_tokens(4096, 8192), ON_GPU) == (
        "The step measured held at most 8,192 tokens on a rank, 50 % of the 16,384 planned for: "
        "shorter sequences need less."
    )
    assert length_words(with_tokens(16383), ON_GPU).startswith(
        "The step measured held at most 16,383 tokens on a rank, 99 %"
    )
    assert length_words(with_tokens(100, 16384), ON_GPU) == ""

    assert report.num_truncated_samples == 7
    assert length_words(report, ON_GPU) == ""
    none_cut = dataclasses.replace(report, num_truncated_samples=0)
    assert length_words(none_cut, ON_GPU) == (
        "No row had to be cut to the 1,024 tokens planned for: batches may have been shorter, and have needed less."
    )
    assert length_words(none_cut, packed) == ""


# A multirun's results


def test_results(tmp_path: Path, golden: Golden) -> None:
    ends = [Status.FINISHED, Status.STOPPED, Status.FAILED]
    cells = [
        CellResult(
            number=number,
            overrides=("gpus=4", "method=lora", f"train.learning_rate={rate}"),
            plan=plan(ON_GPU),
            outcome=dataclasses.replace(
                run_folder(tmp_path / str(number), ON_GPU, status=status), run_dir=Path(f"/runs/{RUN_ID}-{number}")
            ),
        )
        for number, (status, rate) in enumerate(zip(ends, ("1e-4", "2e-4", "5e-4"), strict=True))
    ]
    no_start = CellResult(
        number=3, overrides=("gpus=4", "method=lora", "train.learning_rate=1e-3"), plan=plan(ON_GPU), outcome=None,
        note="not started: stopped",
    )  # fmt: skip
    too_large = CellResult(
        number=4,
        overrides=("gpus=4", "method=full", "train.learning_rate=1e-3"),
        plan=plan(ON_GPU, verdict=Verdict.DOES_NOT_FIT),
        outcome=None,
        note="does not fit",
    )
    out = io.StringIO()
    show_results([*cells, no_start, too_large], make_console(out))
    golden("report/results.txt", out.getvalue())


def test_keys_are_shortened_where_they_stay_apart() -> None:
    assert short_keys(["gpus", "train.loss", "a.size", "b.size"]) == ["gpus", "loss", "a.size", "b.size"]


def test_a_run_that_ran_out_of_memory_keeps_what_takes_less(run_dir: Path) -> None:
    outcome = run_folder(run_dir, ON_GPU, status=Status.FAILED)
    write_report(outcome)
    kept = read_diagnosis(RunFolder(run_dir), 1)
    assert kept is not None
    assert [override.words for override in kept.overrides] == [
        ("train.micro_batch=2",),
        ("train.sequence_length=512",),
    ]
    assert dataclasses.replace(kept, overrides=()) == outcome.diagnosis
