"""How an attempt ended: read from what the ranks wrote, then from how they were seen to end."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import Interrupted, JobFailed
from launcher.runs.diagnosis.deaths import describe_exit
from launcher.runs.diagnosis.read import diagnose_attempt
from launcher.runs.diagnosis.types import Diagnosis
from launcher.runs.layout import RunFolder
from launcher.runs.logs import log_tail
from launcher.runs.markers import Markers, read_markers
from launcher.runs.outcome import Outcome
from launcher.runs.records import RankDeath, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the launcher saw.

    is_asked: somebody asked for a stop. forced: why a stop that was asked for ended by force, empty where it did
    not. is_abandoned: the program that started the ranks ended before them. agent: that program's module.
    """

    is_asked: bool
    forced: str
    is_abandoned: bool
    deaths: tuple[RankDeath, ...]
    agent: str
    agent_exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One sentence for a person, and the rank whose log tells more. is_open: only a diagnosis can tell."""

    text: str
    rank: int | None
    is_open: bool = False


def judge(run: RunFolder, number: int, ending: Ending) -> Outcome:
    """The outcome of an attempt of which no process is left."""
    markers = read_markers(run, number)
    status = _status(markers, ending)
    cause, found = _cause(markers, status, ending), None
    if status is Status.FAILED and cause.is_open:
        found = _diagnose(run, number, ending)
        cause = Cause(text=found.what, rank=found.rank)
    return Outcome(
        run_dir=run.root,
        status=status,
        exit_code=_exit_code(status, ending),
        attempt=number,
        finished=markers.finished,
        stopped=markers.stopped,
        failures=markers.failures,
        first_cause=cause.text,
        log_tail=log_tail(run, number, cause.rank) if status is Status.FAILED else (),
        measurements=markers.measurements,
        diagnosis=found,
    )


def _status(markers: Markers, ending: Ending) -> Status:
    if markers.finished:
        return Status.FINISHED
    is_stopped_early = ending.is_asked and markers.started is None and not markers.failures
    return Status.STOPPED if markers.stopped or is_stopped_early else Status.FAILED


def _exit_code(status: Status, ending: Ending) -> int:
    if status is Status.FINISHED:
        return 0
    return Interrupted.exit_code if ending.is_asked else JobFailed.exit_code


def _cause(markers: Markers, status: Status, ending: Ending) -> Cause:
    if status is Status.FINISHED:
        return Cause(text="", rank=None)
    if markers.stopped:
        stop = f"stopped after step {markers.stopped.step} ({markers.stopped.cause})"
        return Cause(text=f"{_abandoned(ending)}, and they {stop}" if ending.is_abandoned else stop, rank=None)
    if status is Status.STOPPED:
        return Cause(text="stopped before the first step", rank=None)
    if ending.forced:
        return Cause(text=f"ended by force: {ending.forced}", rank=0)
    if ending.is_abandoned:
        return Cause(text=f"{_abandoned(ending)}, and they were ended", rank=None)
    return Cause(text="", rank=None, is_open=True)


def _diagnose(run: RunFolder, number: int, ending: Ending) -> Diagnosis:
    otherwise = f"{ending.agent} {describe_exit(ending.agent_exit_code)}"
    return diagnose_attempt(run, number, deaths=ending.deaths, otherwise=otherwise)


def _abandoned(ending: Ending) -> str:
    return f"{ending.agent} {describe_exit(ending.agent_exit_code)} and left its ranks behind"
