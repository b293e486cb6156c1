"""plan.by: which instrument answers, and when."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from rich.console import Console

from launcher.planner import traced
from launcher.planner.plan import is_close
from launcher.planner.tracing import tracer
from launcher.planner.tracing.failure import TraceFailed
from launcher.planner.tracing.summary import PhasePeak, Summary
from launcher.planner.types import Phase, TermKind, Verdict
from launcher.report.tracing import FAILED, SKIPPED_BY, WHAT, TraceScreen
from launcher.spec import JobSpec
from launcher.units import GIB
from launcher.workflow import Prepared, prepare
from tests.composed import compose_conf, host

PLENTY = ("model=llama3.1-8b", "method=lora", "gpus=1", "device=h200", "train.micro_batch=1")
SMALL_BYTES = 2 * GIB


@dataclass
class StubTracer:
    """Traces nothing: every rank takes SMALL_BYTES."""

    fails: bool = False
    ranks: list[int] = field(default_factory=list)

    def summary(self, spec: JobSpec, rank: int) -> Summary:
        self.ranks.append(rank)
        if self.fails:
            raise TraceFailed("a library has changed")
        return Summary(
            rank=rank,
            phases=tuple(
                PhasePeak(phase=phase, by_category={TermKind.WEIGHTS: SMALL_BYTES})
                for phase in Phase
                if phase is not Phase.SAVE
            ),
            reserved_bytes=SMALL_BYTES,
            least_capacity_bytes=SMALL_BYTES,
            host_peak_bytes=0,
            versions=dict.fromkeys(("torch", "transformers", "accelerate"), "1"),
            assumptions=(),
            wall_s=0.0,
            peak_rss_bytes=0,
        )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubTracer:
    made = StubTracer()
    monkeypatch.setattr(tracer, "make_tracer", lambda _environ, _progress: made)
    return made


def plan(*overrides: str, screen: TraceScreen | None = None) -> Prepared:
    def compose(more: Sequence[str]) -> dict[str, Any]:
        return compose_conf("mode=plan", *PLENTY, *overrides, *more)

    return prepare(overrides, compose, host(), screen)


def test_auto_does_not_trace_what_the_closed_form_can_decide(stub: StubTracer) -> None:
    assert plan(screen=TraceScreen(None)).plan.instrument == "closed form"
    assert stub.ranks == []


@pytest.mark.parametrize("by", ["auto", "trace"])
def test_a_close_call_is_traced_and_decided(stub: StubTracer, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr("launcher.workflow.is_close", lambda _plan: True)
    found = plan(f"plan.by={by}", screen=TraceScreen(None)).plan
    assert found.instrument == traced.INSTRUMENT
    assert found.verdict is Verdict.FITS
    assert stub.ranks == [0]


def test_what_is_close_is_what_the_verdict_calls_so() -> None:
    card = "device=rtx4090"
    lengths = (1024, 2048, 3072, 4096, 6144, 8192)
    plans = [plan("plan.by=closed_form", card, f"train.sequence_length={n}", "fit=warn").plan for n in lengths]
    assert [is_close(one) for one in plans] == [one.verdict is Verdict.TOO_CLOSE for one in plans]


def test_a_sweep_traces_only_where_it_is_told_to(stub: StubTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.workflow.is_close", lambda _plan: True)
    assert plan().plan.instrument == "closed form"
    assert stub.ranks == []
    assert plan("plan.by=trace").plan.instrument == traced.INSTRUMENT


def test_closed_form_never_traces(stub: StubTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.workflow.is_close", lambda _plan: True)
    assert plan("plan.by=closed_form", screen=TraceScreen(None)).plan.instrument == "closed form"
    assert stub.ranks == []


def test_a_failed_trace_is_loud(stub: StubTracer) -> None:
    stub.fails = True
    stderr = io.StringIO()
    found = plan("plan.by=trace", screen=TraceScreen(Console(file=stderr, width=100))).plan
    assert found.instrument == traced.FAILED
    assert stderr.getvalue() == f"{FAILED}\na library has changed\n"


def test_a_trace_in_a_log_is_one_line() -> None:
    log = io.StringIO()
    screen = TraceScreen(Console(file=log, width=100))
    with screen.shown():
        for text in ("importing libraries", "load", "step 1 of 2, forward"):
            screen.progress(text)
    assert log.getvalue() == f"{WHAT} ({SKIPPED_BY})\n"


def test_a_trace_from_the_cache_shows_nothing() -> None:
    log = io.StringIO()
    with TraceScreen(Console(file=log)).shown():
        pass
    assert log.getvalue() == ""
