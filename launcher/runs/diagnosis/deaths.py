"""What the exit status of a rank means that left no word."""

from __future__ import annotations

import signal

from launcher.runs.diagnosis.signs import recognise_log, recognise_text
from launcher.runs.diagnosis.types import Evidence, Failure, Kind
from launcher.runs.records import NodeEnd, RankDeath

EXIT_ORPHANED = 70
"""With which a rank ends itself when its launcher is gone (jobs/watch.py)."""


def silent_failures(evidence: Evidence) -> list[Failure]:
    """The ranks that ended badly without writing why. TERM does not count: it is how the others are told to end."""
    told = {failure.rank for failure in evidence.failures}
    return [
        _failure(evidence, end, death)
        for end in evidence.ends
        for death in end.deaths
        if death.rank not in told and death.exit_code and death.exit_code != -signal.SIGTERM
    ]


def _failure(evidence: Evidence, end: NodeEnd, death: RankDeath) -> Failure:
    assert death.exit_code
    return Failure(
        kind=_kind(evidence, end, death),
        time_s=death.seen_at_s,
        rank=death.rank,
        node=end.node_rank,
        host=end.host,
        exit_code=death.exit_code,
        is_killed=death.exit_code < 0,
    )


def _kind(evidence: Evidence, end: NodeEnd, death: RankDeath) -> Kind:
    said = recognise_log(evidence.rank_tails.get(death.rank, ()))
    if death.exit_code == -signal.SIGKILL:
        return Kind.KERNEL_OUT_OF_MEMORY if _kernel_killed(evidence, end) else Kind.SIGNAL
    if death.exit_code == -signal.SIGBUS:
        return Kind.SHARED_MEMORY_FULL
    if death.exit_code == EXIT_ORPHANED:
        return Kind.ORPHANED
    if death.exit_code == -signal.SIGABRT:  # an uncaught C++ exception: what it was stands in the log
        return said or Kind.SIGNAL
    return Kind.SIGNAL if death.exit_code is not None and death.exit_code < 0 else said or Kind.EXIT


def _kernel_killed(evidence: Evidence, end: NodeEnd) -> bool:
    """Whether anybody says so: the cgroup's counter, the scheduler, or what was printed on that node."""
    if end.oom_kills:
        return True
    if evidence.word is not None and evidence.word.state == "OUT_OF_MEMORY":
        return True
    lines = evidence.agent_texts.get(end.node_rank, "").splitlines()
    # Of the lines of a job's output, those that name another node tell nothing of this one.
    lines += [line for line in evidence.job_text.splitlines() if end.host in line or "task" not in line]
    return any(recognise_text(line) is Kind.KERNEL_OUT_OF_MEMORY for line in lines)


def describe_exit(exit_code: int | None) -> str:
    """An exit code, as subprocess has it, in words."""
    if exit_code is None:
        return "did not end"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"
