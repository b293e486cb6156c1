"""What real messages of torch, NCCL, gloo, Slurm and the kernel mean. Each sample is named after what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.runs.diagnosis.memory import memory_use
from launcher.runs.diagnosis.signs import recognise, recognise_log, recognise_text
from launcher.runs.diagnosis.types import VICTIMS, Evidence, Failure, Kind, MemoryUse
from launcher.units import GIB

SAMPLES = sorted((Path(__file__).parents[1] / "fixtures" / "failures").glob("*.txt"))
BY_SLUG = {re.sub(r"\W+", "-", kind.value.lower()): kind for kind in Kind}


def kind_of(sample: Path) -> Kind:
    """The longest kind that the name of the sample begins with."""
    return BY_SLUG[max((slug for slug in BY_SLUG if sample.stem.startswith(slug)), key=len)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_the_end_of_a_log_is_recognised(sample: Path) -> None:
    assert recognise_log(tuple(sample.read_text().splitlines())) is kind_of(sample)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_a_whole_message_is_recognised(sample: Path) -> None:
    """As a rank writes it into its note: all lines together, beginning with the error's own."""
    lines = [re.sub(r"^\[rank\d+\]: ", "", line) for line in sample.read_text().splitlines()]
    first = next((n for n, line in enumerate(lines) if re.match(r"[\w.]*(Error|Refused)\b", line)), 0)
    assert recognise_text("\n".join(lines[first:])) is kind_of(sample)


@pytest.mark.parametrize(
    ("error_type", "message"),
    [
        ("ValueError", "the stub was told to fail"),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"),
        # no peer of the job: the word alone makes nobody a victim
        ("ConnectionError", "HTTPSConnectionPool(host='api.wandb.ai', port=443): Connection refused"),
        ("KeyError", "'memory'"),
    ],
)
def test_what_speaks_for_itself_is_left_alone(error_type: str, message: str) -> None:
    assert recognise(error_type, message) is None


def test_there_is_a_sample_of_every_kind_that_words_can_tell() -> None:
    from_outside = {Kind.NODE_LOST, Kind.TIME_LIMIT, Kind.PREEMPTED, Kind.CANCELLED, Kind.SCHEDULER, Kind.UNKNOWN}
    by_status = {Kind.SIGNAL, Kind.EXIT, Kind.ORPHANED}
    assert {kind_of(sample) for sample in SAMPLES} == set(Kind) - from_outside - by_status - {Kind.EXCEPTION}
    assert {Kind.COLLECTIVE_TIMEOUT, Kind.CONNECTION_LOST, Kind.ORPHANED} == VICTIMS


def test_the_numbers_of_an_out_of_memory_error() -> None:
    text = next(sample for sample in SAMPLES if sample.stem == "cuda-out-of-memory-torch").read_text()
    failure = Failure(kind=Kind.CUDA_OUT_OF_MEMORY, message=text, phase="backward")
    evidence = Evidence(attempt=1, world_size=2, planned_bytes=20 * GIB, planned_phase_bytes={"backward": 10 * GIB})
    assert memory_use(failure, evidence) == MemoryUse(
        tried_bytes=round(22.78 * GIB),
        in_use_bytes=round(18.73 * GIB),
        allocated_bytes=round(9.08 * GIB),
        capacity_bytes=round(31.47 * GIB),
        planned_bytes=20 * GIB,
        planned_phase_bytes=10 * GIB,
    )
    assert memory_use(Failure(kind=Kind.EXCEPTION, message=text), evidence) is None


def test_the_numbers_of_a_cpu_allocator() -> None:
    text = next(sample for sample in SAMPLES if sample.stem == "host-out-of-memory-allocator").read_text()
    use = memory_use(Failure(kind=Kind.HOST_OUT_OF_MEMORY, message=text), Evidence(attempt=1, world_size=2))
    assert use == MemoryUse(tried_bytes=1 << 50)
