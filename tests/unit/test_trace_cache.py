"""A trace is kept by everything that decides it, and by nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from launcher.planner.tracing import key
from launcher.planner.tracing.cache import TraceCache, cache_dir
from launcher.planner.tracing.child import Progress
from launcher.planner.tracing.events import Event, Kind, Label, Mark, Trace, write
from launcher.planner.tracing.failure import TraceFailed
from launcher.planner.tracing.summary import PhasePeak, Summary
from launcher.planner.tracing.tracer import Tracer
from launcher.planner.types import Phase, TermKind
from launcher.spec import JobSpec
from tests.composed import spec_of

SUMMARY = Summary(
    rank=0,
    phases=(PhasePeak(phase=Phase.LOAD, by_category={TermKind.WEIGHTS: 5}),),
    reserved_bytes=7,
    least_capacity_bytes=6,
    host_peak_bytes=1,
    versions={"torch": "2.13.0"},
    assumptions=("a sentence",),
    wall_s=1.5,
    peak_rss_bytes=2,
)


def spec(*overrides: str) -> JobSpec:
    common = ("mode=plan", "model=smollm2-135m", "device=h100-80g", "gpus=2", "train.micro_batch=1")
    return spec_of(*common, *overrides)


def test_a_summary_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = TraceCache(tmp_path / "traces")
    assert cache.load("k" * 64) is None
    cache.store("k" * 64, SUMMARY)
    assert cache.load("k" * 64) == SUMMARY
    assert cache.load("j" * 64) is None
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["k" * 64 + ".summary"]


@pytest.mark.parametrize("content", [b"", b"half of it", b"\x81\xa4rank\x00"])
def test_a_damaged_entry_is_no_entry(tmp_path: Path, content: bytes) -> None:
    cache = TraceCache(tmp_path)
    (tmp_path / ("k" * 64 + ".summary")).write_bytes(content)
    assert cache.load("k" * 64) is None


def test_the_cache_is_where_the_user_says() -> None:
    assert cache_dir({"FITLAUNCH_CACHE": "/a"}) == Path("/a/traces")
    assert cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/fitlaunch/traces")


@pytest.mark.parametrize(
    "override",
    [
        "train.sequence_length=1024",
        "train.micro_batch=2",
        "train.packing=true",
        "train.activation_checkpointing=none",
        "train.global_batch=2",  # no accumulation: no gradients alive in the forward pass
        "method=full",
        "method.rank=8",
        "shard=fsdp",
        "device=a100-40g",
        "gpus=4",
        "model=smollm2-360m",
    ],
)
def test_what_decides_a_trace_changes_its_key(override: str) -> None:
    assert key.trace_key(spec(override), 0) != key.trace_key(spec(), 0)


@pytest.mark.parametrize("override", ["train.learning_rate=1e-5", "train.global_batch=32", "train.seed=7"])
def test_what_does_not_decide_it_leaves_its_key(override: str) -> None:
    assert key.trace_key(spec(override), 0) == key.trace_key(spec(), 0)


def test_rank_packages_and_code_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key.trace_key(spec(), 0)
    assert key.trace_key(spec(), 1) != before
    with monkeypatch.context() as patch:
        patch.setattr(key, "package_versions", lambda: {"torch": "2.14.0"})
        assert key.trace_key(spec(), 0) != before
    with monkeypatch.context() as patch:
        patch.setattr(key, "code_digest", lambda: "another")
        assert key.trace_key(spec(), 0) != before
    assert key.trace_key(spec(), 0) == before


def test_every_field_that_is_left_out_of_the_key_exists() -> None:
    names = {field.name for field in dataclasses.fields(spec().train)}
    assert set(key.NO_MATTER) <= names


def test_a_trace_is_made_once(tmp_path: Path) -> None:
    ranks: list[int] = []

    def run(job: Path, out: Path, rank: int, *, environ: Mapping[str, str], progress: Progress) -> None:
        ranks.append(rank)
        events = [Event(Kind.MARK), Event(Kind.ALLOCATE, 1, 1000)]
        labels, marks = (Label(operation="", category=TermKind.WEIGHTS),), (Mark(phase=Phase.LOAD, step=0),)
        write(
            Trace(device="cuda", rank=rank, world_size=2, num_steps=0, labels=labels, marks=marks, events=events), out
        )

    tracer = Tracer(cache=TraceCache(tmp_path), environ={}, progress=lambda _text: None, run=run)
    first = tracer.summary(spec(), 0)
    assert first.allocated_bytes == 1024
    assert tracer.summary(spec(), 0) == first
    assert ranks == [0]
    tracer.summary(spec(), 1)
    assert ranks == [0, 1]


def test_a_tracer_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    def run(job: Path, out: Path, rank: int, *, environ: Mapping[str, str], progress: Progress) -> None: ...

    tracer = Tracer(cache=TraceCache(tmp_path), environ={}, progress=lambda _text: None, run=run)
    with pytest.raises(TraceFailed, match="left no trace"):
        tracer.summary(spec(), 0)
    assert list(tmp_path.iterdir()) == []
