"""Every method under every sharding, traced as rank 1 of 2 on a GPU and on the CPU: what a rank holds between two steps
is exactly what the sharding leaves it, to the byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.planner.tracing.events import Kind, Trace, read
from launcher.planner.tracing.server import TraceServer
from launcher.planner.types import Phase, TermKind
from launcher.spec import JobSpec, Offload, to_json
from tests.planner_jobs import TINY_CONFIG, job

pytestmark = pytest.mark.distributed

METHODS = ("full", "lora", "qlora")
SHARDS = ("ddp", "fsdp", "zero2", "zero3")
RANKS = 2
LORA_RANK = 16
TIMEOUT_S = 300

# tests.planner_jobs.TINY_CONFIG, by hand: two matrices of 256 x 64; in each of 3 layers these seven, and norms of 64.
LINEARS = ((64, 64), (32, 64), (32, 64), (64, 64), (192, 64), (192, 64), (64, 192))
LAYERS = 3
NUM_NORMS = 2 * LAYERS + 1
NORMS = NUM_NORMS * 64
IN_LINEARS = LAYERS * sum(rows * columns for rows, columns in LINEARS)
MATRICES = 2 * 256 * 64 + IN_LINEARS
PARAMETERS = MATRICES + NORMS
NUM_PARAMETERS = 2 + LAYERS * len(LINEARS) + NUM_NORMS
ADAPTERS = LAYERS * sum(LORA_RANK * (rows + columns) for rows, columns in LINEARS)
NUM_ADAPTERS = LAYERS * len(LINEARS) * 2

# Parameters that ZeRO-3 never releases: those of at most 10 x 64 elements.
PERSISTENT_NORMS = NORMS
PERSISTENT_ADAPTERS = LAYERS * 2 * 32 * LORA_RANK
# The rotary embedding's frequencies, twice half a head in fp32: weights where they are made on their device at once.
FREQUENCIES_BYTES = 2 * 8 * 4
# Of one 4-bit matrix: a byte a block of 64, 4 bytes a 256 of those, its code, the constants' code, and their mean;
# once more the constants' code, which bitsandbytes keeps.
NF4_CONSTANTS_BYTES = IN_LINEARS // 64 + LAYERS * len(LINEARS) * (4 + 16 * 4 + 256 * 4 + 4) + 256 * 4
# What bitsandbytes keeps to quantise on the CPU: the code, its order, and the bounds between its values.
NF4_TABLES_BYTES = 16 * 4 + 16 * 8 + 15 * 4
STEP_BYTES = 4  # AdamW's own counter, one a tensor that it steps


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, TraceServer]]:
    with TraceServer("cuda", timeout_s=TIMEOUT_S) as cuda, TraceServer("cpu", timeout_s=TIMEOUT_S) as cpu:
        yield {"cuda": cuda, "cpu": cpu}


def traced(servers: dict[str, TraceServer], spec: JobSpec, folder: Path) -> Trace:
    (folder / "job.json").write_text(to_json(spec))
    servers[spec.device.kind].run(folder / "job.json", folder / "trace", 1)
    return read(folder / "trace")


def cell(method: str, shard: str, device: str, offload: str = "none") -> JobSpec:
    return job(
        dict(TINY_CONFIG),
        method=method,
        shard=shard,
        offload=offload,
        device="cpu" if device == "cpu" else "a100-80g",
        gpus=RANKS,
        rank=LORA_RANK,
        global_batch=RANKS,
        sequence_length=64,
    )


def held(trace: Trace) -> Counter[str]:
    """Bytes by category when the second step begins."""
    found: Counter[str] = Counter()
    alive: dict[int, tuple[str, int]] = {}
    for event in trace.events:
        if event.kind is Kind.ALLOCATE:
            alive[event.block] = (trace.labels[event.label].category, event.size_bytes)
        elif event.kind is Kind.FREE:
            del alive[event.block]
        elif event.kind is Kind.MARK:
            mark = trace.marks[event.label]
            if (mark.phase, mark.step) == (Phase.FORWARD, 2):
                break
    for category, size_bytes in alive.values():
        found[category] += size_bytes
    return found


def weights_bytes(method: str, shard: str, device: str) -> int:
    """The base model's: whole or halved; in fp32 where it is trained without DeepSpeed, else in bf16 or 4 bits."""
    split = RANKS if shard in ("fsdp", "zero3") else 1
    gathered = 2 * PERSISTENT_NORMS if shard == "zero3" else 0
    if method == "qlora":
        stored = IN_LINEARS // 2 + 2 * (PARAMETERS - IN_LINEARS)
        tables = NF4_TABLES_BYTES if device == "cpu" else 0
        return stored // split + NF4_CONSTANTS_BYTES + tables + gathered
    width = 4 if method == "full" and shard in ("ddp", "fsdp") else 2
    return PARAMETERS * width // split + gathered


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_rank_holds_exactly_its_part(
    servers: dict[str, TraceServer], method: str, shard: str, device: str, tmp_path: Path
) -> None:
    found = held(traced(servers, cell(method, shard, device), tmp_path))
    engine = shard in ("zero2", "zero3")
    trained = PARAMETERS if method == "full" else ADAPTERS
    num_trained = NUM_PARAMETERS if method == "full" else NUM_ADAPTERS
    share = trained if shard == "ddp" else trained // RANKS
    # DeepSpeed steps one flat tensor a parameter group: full fine-tuning has two, with weight decay and without.
    num_stepped = (2 if method == "full" else 1) if engine else num_trained
    assert found[TermKind.WEIGHTS] - weights_bytes(method, shard, device) in (0, FREQUENCIES_BYTES)
    assert found[TermKind.OPTIMIZER_STATES] == 2 * 4 * share + STEP_BYTES * num_stepped
    assert found[TermKind.MASTER_WEIGHTS] == (4 * share if engine else 0)
    if method != "full":
        gathered = 2 * PERSISTENT_ADAPTERS if shard == "zero3" else 0
        width = 2 if engine else 4
        assert found[TermKind.ADAPTERS] == width * (trained if shard == "zero2" else share) + gathered
    if shard == "zero3":
        assert found[TermKind.GRADIENTS] == 2 * share  # the flat buffer, for the whole run


@pytest.mark.parametrize(("shard", "offload"), [("zero2", "optimizer"), ("zero3", "optimizer"), ("zero3", "all")])
def test_what_is_offloaded_leaves_the_device_for_pinned_memory(
    servers: dict[str, TraceServer], shard: str, offload: str, tmp_path: Path
) -> None:
    trace = traced(servers, cell("full", shard, "cuda", offload), tmp_path)
    found = held(trace)
    assert found[TermKind.OPTIMIZER_STATES] == 0
    assert found[TermKind.MASTER_WEIGHTS] == 0
    if offload == Offload.ALL:
        assert found[TermKind.WEIGHTS] - 2 * PERSISTENT_NORMS in (0, FREQUENCIES_BYTES)
    pinned = [event.size_bytes for event in trace.host_events if event.stream == 1 and event.kind is Kind.ALLOCATE]
    assert max(pinned) >= 4 * MATRICES // RANKS  # the master's partition, or the gradients' that initialise it
