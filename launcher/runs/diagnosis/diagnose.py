"""The way in: evidence -> diagnosis. Pure."""

from __future__ import annotations

from launcher.runs.diagnosis.advice import advise
from launcher.runs.diagnosis.culprit import all_failures, first_failure
from launcher.runs.diagnosis.memory import memory_use
from launcher.runs.diagnosis.types import VICTIMS, Diagnosis, Evidence, Failure, Kind
from launcher.runs.diagnosis.words import sentence, who

TAIL_LINES = 15


def diagnose(evidence: Evidence, *, run: str) -> Diagnosis:
    """The first cause of an attempt that failed. run: what it is called in a command."""
    failure = first_failure(evidence)
    memory = memory_use(failure, evidence)
    ranks = {other.rank for other in all_failures(evidence) if other.rank is not None}
    return Diagnosis(
        attempt=evidence.attempt,
        kind=failure.kind,
        what=sentence(failure, evidence, memory),
        rank=failure.rank,
        node=failure.node,
        host=failure.host,
        time_s=failure.time_s,
        step=failure.step,
        phase=failure.phase,
        because=_because(failure, evidence),
        victims=tuple(sorted(ranks - {failure.rank})),
        memory=memory,
        scheduler=evidence.word,
        log_tail=_log_tail(failure, evidence),
        advice=advise(failure, evidence, run),
    )


def _because(failure: Failure, evidence: Evidence) -> tuple[str, ...]:
    """Why this is held to be the first cause, where that is not plain from the sentence."""
    lines = []
    for end in evidence.ends:
        if failure.kind is Kind.KERNEL_OUT_OF_MEMORY and end.oom_kills and end.node_rank == failure.node:
            lines.append(f"the cgroup of the job on {end.host} counts {end.oom_kills} killed for want of memory")
    victims = sorted(
        (other for other in all_failures(evidence) if other.kind in VICTIMS and other.rank != failure.rank),
        key=lambda other: other.time_s or 0.0,
    )
    if victims and failure.rank is not None:
        lines.append(f"{who(victims[0], evidence)} lost it ({victims[0].kind}): a victim, not a cause")
    word = evidence.word
    if word is not None:
        reason = f", reason {word.reason}" if word.reason and word.reason != "None" else ""
        lines.append(f"the scheduler says of job {word.job_id}: {word.state}{reason}")
    return tuple(lines)


def _log_tail(failure: Failure, evidence: Evidence) -> tuple[str, ...]:
    """Of the rank that failed first; else of the program that starts ranks, on that node or on the first that spoke."""
    if failure.rank is not None and evidence.rank_tails.get(failure.rank):
        return evidence.rank_tails[failure.rank][-TAIL_LINES:]
    texts = (evidence.agent_texts.get(failure.node or 0, ""), *evidence.agent_texts.values(), evidence.job_text)
    return tuple(next(filter(None, texts), "").splitlines()[-TAIL_LINES:])
