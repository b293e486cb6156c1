"""What people see of an answer to what fits, and of what would take less memory after a run that ran out of it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
from rich.console import Console

from launcher.fitting.types import Answer, Job, Refusal, Row
from launcher.models import model_shape
from launcher.planner.estimate import Estimator
from launcher.planner.fit.advice import out_of_memory_advice
from launcher.planner.types import Verdict
from launcher.report.console import make_console
from launcher.report.fit_table import show_answer
from launcher.runs.diagnosis.signs import recognise
from launcher.runs.diagnosis.types import MEMORY
from launcher.spec import JobSpec, MethodKind, Offload, ShardKind
from launcher.units import GIB
from tests.planner_jobs import job
from tests.report_fixtures import ANY, RTX4090, SUGGESTIONS, plan, spec


def row(method: MethodKind, shard: ShardKind, **values: object) -> Row:
    """A row that fits on one GPU, unless told otherwise."""
    fits = {
        "offload": Offload.NONE, "gpus_per_node": 1, "nodes": 1, "overrides": (f"method={method}", f"shard={shard}"),
        "process_bytes": 5 * GIB, "high_bytes": 6 * GIB, "host_ram_bytes_per_node": 2 * GIB, "verdict": Verdict.FITS,
        "micro_batch": 4, "largest_micro_batch": 5, "longest_sequence": 2752, "time_ratio": 1.0, "smallest_card": None,
    }  # fmt: skip
    return Row(method=method, shard=shard, **(fits | values))  # type: ignore[arg-type]


Golden = Callable[[str, str], None]
NOTHING = {"largest_micro_batch": None, "longest_sequence": None, "time_ratio": None}
TOO_LARGE = {"process_bytes": 139 * GIB, "high_bytes": 153 * GIB, "verdict": Verdict.DOES_NOT_FIT}
ROWS = (
    row(
        MethodKind.FULL,
        ShardKind.DDP,
        process_bytes=139 * GIB,
        high_bytes=153 * GIB,
        verdict=Verdict.DOES_NOT_FIT,
        **NOTHING,
    ),
    row(MethodKind.FULL, ShardKind.ZERO2, gpus_per_node=8, high_bytes=13 * GIB, verdict=Verdict.TOO_CLOSE, **NOTHING),
    row(MethodKind.FULL, ShardKind.FSDP, offload=Offload.ALL, host_ram_bytes_per_node=120 * GIB, time_ratio=12.3),
    row(MethodKind.LORA, ShardKind.DDP),
    row(MethodKind.LORA, ShardKind.ZERO3, gpus_per_node=2, nodes=2, time_ratio=1.26),
)
OPEN = Answer(
    words=("model=tiny", "device=rtx4090"),
    model="tiny",
    num_parameters=655_680,
    device=dataclasses.replace(RTX4090, memory_bytes=12 * GIB),
    sequence_length=1024,
    global_batch=64,
    rows=ROWS,
    refused=(Refusal(overrides=("method=qlora", "shard=fsdp"), reason="something has no effect"),),
    job=None,
)
NO_CARD = dataclasses.replace(
    OPEN,
    words=("model=tiny",),
    device=ANY,
    refused=(),
    rows=tuple(
        dataclasses.replace(r, smallest_card=c, **NOTHING) for r, c in zip(ROWS[3:], ("t4 x 1", None), strict=True)
    ),
)
ONE_JOB = dataclasses.replace(
    OPEN,
    rows=ROWS[:1],
    refused=(),
    job=Job(
        plan=plan(spec(device=OPEN.device), verdict=Verdict.DOES_NOT_FIT, suggestions=SUGGESTIONS),
        fewest_gpus=None,
        cards=("h200 x 2", "a100-80g x 4"),
    ),
)


@pytest.mark.parametrize(("name", "answer"), [("open", OPEN), ("no-card", NO_CARD), ("one-job", ONE_JOB)])
def test_answer_in_a_pipe(name: str, answer: Answer, golden: Golden) -> None:
    out = io.StringIO()
    show_answer(answer, make_console(out))
    golden(f"report/fit-{name}.txt", out.getvalue())


def test_a_narrow_terminal_loses_no_number() -> None:
    wide, narrow = io.StringIO(), io.StringIO()
    show_answer(OPEN, make_console(wide))
    show_answer(OPEN, Console(file=narrow, width=80, force_terminal=True, no_color=True, highlight=False, markup=False))
    for number in ("139.00", "153.00", "120.00", "2,752", "12x", "1.3x"):
        assert narrow.getvalue().count(number) == wide.getvalue().count(number) > 0


@pytest.mark.parametrize(
    ("error_type", "message", "expected"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("AcceleratorError", "CUDA error: out of memory", True),
        (
            "RuntimeError",
            "DefaultCPUAllocator: can't allocate memory: you tried to",
            True,
        ),
        ("MemoryError", "", True),
        ("DistBackendError", "NCCL error: unhandled cuda error", False),
        ("ValueError", "a memory of things past", False),
    ],
)
def test_out_of_memory_is_told_from_other_failures(error_type: str, message: str, expected: bool) -> None:
    assert (recognise(error_type, message) in MEMORY) is expected


def advised(spec: JobSpec) -> dict[str, bool]:
    """The first option of each advice, with whether it changes the training."""
    found = out_of_memory_advice(Estimator(model_shape(spec.model.config)), spec)
    assert all(item.saved_bytes > 0 for item in found)
    return {" ".join(item.overrides): item.changes_training for item in found}


def test_advice_comes_in_the_usual_order() -> None:
    """Micro batch, length, checkpointing, QLoRA."""
    assert advised(job(micro_batch=8, checkpointing="none", global_batch=48)) == {
        "train.micro_batch=4": False,
        "train.sequence_length=1024": True,
        "train.activation_checkpointing=full": False,
        "method=qlora": True,
    }
    assert next(iter(advised(job(micro_batch=6, global_batch=48)))) == "train.micro_batch=3"


def test_what_is_done_already_is_not_advised() -> None:
    assert advised(job(method="qlora", micro_batch=1, sequence_length=200)) == {}
    assert list(advised(job(method="qlora", micro_batch=1, sequence_length=256))) == ["train.sequence_length=128"]
    assert "method=qlora" not in advised(job(device="cpu", gpus=2, micro_batch=2, precision="fp32"))


def test_what_is_advised_saves_what_it_says() -> None:
    asked = job(micro_batch=8, checkpointing="none")
    estimator = Estimator(model_shape(asked.model.config))
    first = out_of_memory_advice(estimator, asked)[0]
    smaller = estimator.estimate(asked.with_micro_batch(4)).need.process_bytes
    assert first.saved_bytes == estimator.estimate(asked).need.process_bytes - smaller
