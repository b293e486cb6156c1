"""How an attempt ended: read from what the ranks wrote, then from how they were seen to end."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import Interrupted, JobFailed
from launcher.runs.cause import Cause, describe_exit, first_cause
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


def judge(run: RunFolder, number: int, ending: Ending) -> Outcome:
    """The outcome of an attempt of which no process is left."""
    markers = read_markers(run, number)
    status = _status(markers, ending)
    cause = _cause(markers, status, ending)
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
    agent_exit = describe_exit(ending.agent_exit_code)
    return first_cause(markers.failures, ending.deaths, otherwise=f"{ending.agent} {agent_exit}")


def _abandoned(ending: Ending) -> str:
    return f"{ending.agent} {describe_exit(ending.agent_exit_code)} and left its ranks behind"
