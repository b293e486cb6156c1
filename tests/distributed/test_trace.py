"""The tracer itself: real traces of small jobs, and what happens when something that it replaces no longer holds."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.models import model_shape
from launcher.planner.plan import make_plan
from launcher.planner.traced import FAILED, plan_by_trace
from launcher.planner.tracing.cache import TraceCache
from launcher.planner.tracing.events import Event, Kind, Trace, read
from launcher.planner.tracing.failure import TraceFailed
from launcher.planner.tracing.server import TraceServer
from launcher.planner.tracing.summary import peaks
from launcher.planner.tracing.tracer import Tracer
from launcher.planner.types import Phase, TermKind
from launcher.spec import JobSpec, to_json
from tests.composed import spec_of
from tests.tiny import MODEL_TYPES, tiny_config

pytestmark = pytest.mark.distributed

TIMEOUT_S = 300
SMALL_BYTES = 1024


@pytest.fixture(scope="module")
def server() -> Iterator[TraceServer]:
    with TraceServer("cuda", timeout_s=TIMEOUT_S) as running:
        yield running


@pytest.fixture(scope="module")
def cpu_server() -> Iterator[TraceServer]:
    with TraceServer("cpu", timeout_s=TIMEOUT_S) as running:
        yield running


def tiny_model(tmp_path: Path, model_type: str) -> Path:
    """A model's config.json and nothing else: a trace reads no weights."""
    config = tiny_config(model_type)
    config.save_pretrained(tmp_path / model_type)
    return tmp_path / model_type


def spec(tmp_path: Path, model_type: str, *overrides: str) -> JobSpec:
    common = ("mode=plan", "model=path", f"model.path={tiny_model(tmp_path, model_type)}", "train.sequence_length=128")
    return spec_of(*common, "train.micro_batch=2", *overrides)


def trace(server: TraceServer, spec: JobSpec, tmp_path: Path, rank: int = 0) -> Trace:
    job, out = tmp_path / "job.json", tmp_path / "out.trace"
    job.write_text(to_json(spec))
    server.run(job, out, rank)
    return read(out)


def held(found: Trace, phase: Phase, *kinds: TermKind) -> int:
    """Bytes as asked for, before any allocator rounds them, at the peak of a phase."""
    categories = [label.category for label in found.labels]
    phases = peaks(found.events, found.marks, categories, size_of=lambda size_bytes: size_bytes)
    (peak,) = [one for one in phases if one.phase == phase]
    return sum(peak.by_category.get(kind, 0) for kind in kinds)


def in_order(events: list[Event]) -> list[list[Event]]:
    """The events, those that are freed together as one group in the order of their numbers: autocast drops its copies
    of weights in the order of their addresses."""
    groups = itertools.groupby(events, key=lambda event: event.kind is Kind.FREE)
    return [sorted(group, key=lambda event: event.block) if is_free else list(group) for is_free, group in groups]


# Experts in fp32 too: autocast leaves their grouped products alone.
IN_HALF = [(model_type, "bf16_pure", 2) for model_type in MODEL_TYPES]
IN_FULL = [(model_type, "bf16_mixed", 4) for model_type in ("llama", "mixtral", "qwen3_moe")]


@pytest.mark.parametrize(("model_type", "precision", "width"), [*IN_HALF, *IN_FULL])
def test_every_architecture_is_traced(
    server: TraceServer, tmp_path: Path, model_type: str, precision: str, width: int
) -> None:
    options = ("method=full", "shard=ddp", "gpus=1", "device=h100-80g", f"train.precision={precision}")
    job = spec(tmp_path, model_type, *options)
    found = trace(server, job, tmp_path)
    size_bytes = width * model_shape(job.model.config).num_parameters
    # Beside them stand the positions' few buffers and a step counter for each tensor.
    assert 0 <= held(found, Phase.OPTIMIZER, TermKind.WEIGHTS) - size_bytes < SMALL_BYTES
    assert held(found, Phase.OPTIMIZER, TermKind.GRADIENTS) == size_bytes
    assert 0 <= held(found, Phase.OPTIMIZER, TermKind.OPTIMIZER_STATES) - 2 * size_bytes < SMALL_BYTES


def test_the_same_job_gives_the_same_trace(server: TraceServer, tmp_path: Path) -> None:
    job = spec(tmp_path, "llama", "method=lora", "shard=ddp", "gpus=2", "device=h100-80g")
    first, second = trace(server, job, tmp_path), trace(server, job, tmp_path)
    assert (first.labels, first.marks) == (second.labels, second.marks)
    assert in_order(first.events) == in_order(second.events)


def test_every_block_is_freed_once_and_nothing_else_is(server: TraceServer, tmp_path: Path) -> None:
    job = spec(tmp_path, "llama", "method=full", "shard=fsdp", "gpus=4", "device=h100-80g")
    alive: dict[int, int] = {}
    for event in trace(server, job, tmp_path).events:
        if event.kind is Kind.ALLOCATE:
            assert event.block not in alive
            alive[event.block] = event.size_bytes
        elif event.kind is Kind.FREE:
            assert alive.pop(event.block) == event.size_bytes


def test_fsdp_divides_and_the_last_rank_has_what_is_left(server: TraceServer, tmp_path: Path) -> None:
    job = spec(tmp_path, "llama", "method=full", "shard=fsdp", "gpus=3", "train.global_batch=6", "device=h100-80g")
    kind = TermKind.OPTIMIZER_STATES
    first, last = (held(trace(server, job, tmp_path, rank), Phase.OPTIMIZER, kind) for rank in (0, 2))
    assert first > last


def test_quantised_weights_that_are_sharded_are_never_whole_on_a_gpu(server: TraceServer, tmp_path: Path) -> None:
    def peaks_in(shard: str) -> tuple[int, int]:
        job = spec(tmp_path, "llama", "method=qlora", f"shard={shard}", "gpus=8", "device=h100-80g")
        found = trace(server, job, tmp_path)
        return held(found, Phase.LOAD, *TermKind), held(found, Phase.WRAP, *TermKind)

    whole_bytes, _ = peaks_in("ddp")
    loading_bytes, wrapping_bytes = peaks_in("fsdp")
    config = tiny_config("llama")
    assert 0 < loading_bytes < 2 * 2 * config.hidden_size * config.intermediate_size  # one in bf16, and quantised
    assert wrapping_bytes < whole_bytes


@pytest.mark.parametrize(("as_view", "copies"), [(True, 1), (False, 2)])
def test_gradients_and_their_copies_in_ddp_buckets(
    server: TraceServer, tmp_path: Path, as_view: bool, copies: int
) -> None:
    view, half = f"shard.gradient_as_bucket_view={str(as_view).lower()}", "train.precision=bf16_pure"
    job = spec(tmp_path, "llama", "method=full", "shard=ddp", "gpus=2", "device=h100-80g", half, view)
    found = held(trace(server, job, tmp_path), Phase.OPTIMIZER, TermKind.GRADIENTS, TermKind.SHARDING_BUFFERS)
    assert 0 <= found - copies * 2 * model_shape(job.model.config).num_parameters < SMALL_BYTES


def test_the_cpu_has_no_cuda_kernels(cpu_server: TraceServer, tmp_path: Path) -> None:
    job = spec(tmp_path, "llama", "method=full", "shard=ddp", "gpus=2", "device=cpu")
    found = trace(cpu_server, job, tmp_path)
    operations = {label.operation for label in found.labels}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in operations
    assert not [event for event in found.events if event.kind is Kind.WORKSPACE or event.stream]


def test_a_traced_plan_of_a_real_trace(server: TraceServer, tmp_path: Path) -> None:
    job = spec(tmp_path, "qwen2", "method=lora", "shard=fsdp", "gpus=2", "device=rtx4090")
    tracer = Tracer(cache=TraceCache(tmp_path / "cache"), environ={}, progress=lambda _text: None, run=server.run)
    plan = plan_by_trace(make_plan(job, ()), tracer.summary, pytest.fail)
    assert plan.instrument == "trace"
    assert plan.worst_rank.allocated_bytes_in(Phase.BACKWARD) > plan.worst_rank.allocated_bytes_in(Phase.LOAD)
    saving = [term for term in plan.worst_rank.terms if Phase.SAVE in term.phases and term.kind is TermKind.WEIGHTS]
    assert [term.source.startswith("trace of rank 0") for term in saving] == [True]


def test_a_job_that_cannot_be_traced_says_why(server: TraceServer, tmp_path: Path) -> None:
    job = spec(tmp_path, "llama", "method=full", "shard=ddp", "gpus=1", "device=h100-80g")
    (tmp_path / "job.json").write_text(to_json(job).replace('"llama"', '"no_such_model"'))
    with pytest.raises(TraceFailed, match="no_such_model"):
        server.run(tmp_path / "job.json", tmp_path / "out.trace", 0)


MISSING = {"train.loss=fused_linear": "liger_kernel", "train.attention=flash_attention_2": "flash_attn"}


@pytest.mark.parametrize(("override", "package"), MISSING.items())
def test_without_its_package_a_job_is_planned_by_closed_form_and_less_surely(
    server: TraceServer, tmp_path: Path, override: str, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed: the job is traced")
    job = spec(tmp_path, "llama", "method=lora", "shard=ddp", "gpus=1", "device=h100-80g", override)
    tracer = Tracer(cache=TraceCache(tmp_path / "cache"), environ={}, progress=lambda _text: None, run=server.run)
    planned = make_plan(job, ())
    complaints: list[str] = []
    plan = plan_by_trace(planned, tracer.summary, complaints.append)
    (complaint,) = complaints
    assert package.split("_")[0] in complaint.lower()
    assert plan.instrument == FAILED
    assert plan.process_low_bytes < planned.process_low_bytes
    assert plan.process_high_bytes > planned.process_high_bytes


# Each line takes away what one file replaces; the self-test must not let a trace begin.
BROKEN = {
    "attention": "from jobs.tracing import attention; attention.install = lambda target: None",
    "autocast": "import torch.cuda.amp.common as common; common.amp_definitely_not_available = lambda: True",
    "moves": "from jobs.tracing import fake_tensors; fake_tensors._set_data = lambda tensor, new: None",
    "resizes": "from jobs.tracing import fake_tensors; fake_tensors._watch_resizes = lambda recorder: None",
    "addresses": "from jobs.tracing import fake_tensors; fake_tensors._give_addresses = lambda: None",
    "foreach": "from jobs.tracing import fake_tensors; fake_tensors._let_optimizers_choose = lambda: None",
    "streams": "from jobs.tracing import cuda_runtime; cuda_runtime.current_stream_number = lambda: 0",
}
PROGRAM = """
import os, sys
from pathlib import Path
from jobs.tracing.session import record, set_environment
from launcher.spec import read_job
spec = read_job(Path(sys.argv[1]))
set_environment(spec, 0)
exec(sys.argv[2])
from jobs.tracing.selftest import SelfTestFailed
try:
    record(spec, 0)
except SelfTestFailed as error:
    print("SelfTestFailed:", error, flush=True)
    os._exit(0)
os._exit(1)
"""


@pytest.mark.parametrize("broken", BROKEN)
def test_a_replacement_that_does_not_hold_is_noticed(tmp_path: Path, broken: str) -> None:
    job = tmp_path / "job.json"
    job.write_text(to_json(spec(tmp_path, "llama", "method=full", "shard=ddp", "gpus=1", "device=h100-80g")))
    argv = (sys.executable, "-c", PROGRAM, str(job), BROKEN[broken])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("SelfTestFailed:")
