"""The way of a job before anything is written: compose, plan, show, refuse."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.compose import make_spec
from launcher.devices import listed_devices
from launcher.errors import DoesNotFit, InputError
from launcher.host import Host
from launcher.planner.calibration import load_constants
from launcher.planner.plan import equivalents, is_close, make_plan
from launcher.planner.types import MemoryPlan, Verdict
from launcher.report.plan_json import plan_json
from launcher.report.plan_table import show_plan
from launcher.report.tracing import TraceScreen
from launcher.schema import AUTO
from launcher.spec import Fit, JobSpec, Mode, PlanBy, PlanFormat

Conf = Mapping[str, Any]
Compose = Callable[[Sequence[str]], Conf]
"""Composes the configuration anew with more overrides at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """How a sweep is carried out. drop: leave out what cannot fit instead of refusing all. wait: until all jobs of a
    cluster have ended. parallel: cells at a time on this host; None is as many as there is room for."""

    drop: bool = False
    wait: bool = False
    parallel: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One validated and planned job. overrides: the user's; applied: those that fit=auto added."""

    overrides: tuple[str, ...]
    plan: MemoryPlan
    mode: Mode
    fit: Fit
    as_json: bool
    explain: bool
    runs_dir: Path
    applied: tuple[str, ...] = ()
    sweep: SweepOptions = SweepOptions()

    @property
    def refused(self) -> bool:
        """Whether the plan does not fit and the user wants such jobs refused."""
        return self.plan.verdict is Verdict.DOES_NOT_FIT and self.fit is not Fit.WARN


def prepare(overrides: Sequence[str], compose: Compose, host: Host, screen: TraceScreen | None = None) -> Prepared:
    """Validate and plan; with fit=auto, take the cheapest equivalent that fits. Raises InputError.

    screen: where a trace shows itself. Without one, plan.by=auto never traces: nobody waits for hundreds of traces.
    """
    conf = compose(())
    constants = load_constants(os.environ)
    by = PlanBy(conf["plan"]["by"])
    # A sweep shows a line for each plan; only fit=auto asks what would make a cell fit.
    propose = screen is not None or conf["fit"] == Fit.AUTO or conf["plan"]["format"] == PlanFormat.JSON
    plan = make_plan(make_spec(conf, host), listed_devices(), constants, propose=propose)
    plan = _by_instrument(plan, by, screen)
    applied: tuple[str, ...] = ()
    if conf["fit"] == Fit.AUTO and plan.verdict is Verdict.DOES_NOT_FIT:
        applied, spec = _first_that_runs(equivalents(plan), compose, host)
        if spec is not None:
            plan = _by_instrument(make_plan(spec, listed_devices(), constants), by, screen)
    return Prepared(
        overrides=tuple(overrides),
        plan=plan,
        mode=Mode(conf["mode"]),
        fit=Fit(conf["fit"]),
        as_json=conf["plan"]["format"] == PlanFormat.JSON,
        explain=conf["plan"]["explain"],
        runs_dir=Path(conf["runs_dir"]).expanduser().absolute(),
        applied=applied,
        sweep=_sweep_options(conf),
    )


def _sweep_options(conf: Conf) -> SweepOptions:
    options = conf["sweep"]
    parallel = None if options["parallel"] == AUTO else options["parallel"]
    return SweepOptions(drop=options["drop"], wait=options["wait"], parallel=parallel)


def _by_instrument(plan: MemoryPlan, by: PlanBy, screen: TraceScreen | None) -> MemoryPlan:
    """The closed form's plan, or the traced one where that is wanted or needed."""
    wanted = by is PlanBy.TRACE or (by is PlanBy.AUTO and screen is not None and is_close(plan))
    if not wanted:
        return plan
    from launcher.planner.traced import plan_by_trace  # most plans need none of it
    from launcher.planner.tracing.tracer import make_tracer

    screen = screen or TraceScreen(None)
    with screen.shown():
        return plan_by_trace(plan, make_tracer(os.environ, screen.progress).summary, screen.complain)


def _first_that_runs(
    choices: Sequence[tuple[str, ...]], compose: Compose, host: Host
) -> tuple[tuple[str, ...], JobSpec | None]:
    """The first of several ways that this host can run: a plan may propose what needs a package it lacks."""
    for overrides in choices:
        with contextlib.suppress(InputError):
            return overrides, make_spec(compose(overrides), host)
    return (), None


def show_prepared(prepared: Prepared, console: Console) -> None:
    """The plan on the console, or as one JSON document on stdout."""
    if prepared.as_json:
        sys.stdout.write(plan_json(prepared.plan) + "\n")
        return
    show_plan(prepared.plan, console, explain=prepared.explain)
    if prepared.applied:
        console.print(f"\nfit=auto applied {' '.join(prepared.applied)}: the training stays the same", style="yellow")


def refuse_if_too_large(prepared: Prepared) -> None:
    """Raise DoesNotFit where the user wants jobs that do not fit refused."""
    if prepared.refused:
        raise DoesNotFit(too_large_words(prepared.plan))


def too_large_words(plan: MemoryPlan) -> str:
    """Why a job is refused, in a sentence; the plan itself says what would fit."""
    return f"the job does not fit {plan.spec.device.name}; nothing was started (fit=warn starts it all the same)"
