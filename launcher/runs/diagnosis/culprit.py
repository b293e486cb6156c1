"""The failure that came first, and that the others followed from."""

from __future__ import annotations

import signal

from launcher.runs.diagnosis.deaths import silent_failures
from launcher.runs.diagnosis.nodes import failed_rendezvous, host_of, lost_nodes, missing_nodes, said_of_nodes
from launcher.runs.diagnosis.signs import recognise, recognise_log, recognise_text
from launcher.runs.diagnosis.types import Evidence, Failure, Kind

# A rank that is killed takes its peers with it: they fail in the next collective, and do write. Their notes may even
# be older than the moment its death was noticed, but not by more than this; the clocks of two hosts differ as well.
NOTICE_S = 2.0
NOTICE_ELSEWHERE_S = 10.0

# Slurm's own words for a job that it ended itself.
BY_SCHEDULER = {
    "TIMEOUT": Kind.TIME_LIMIT,
    "DEADLINE": Kind.TIME_LIMIT,
    "PREEMPTED": Kind.PREEMPTED,
    "CANCELLED": Kind.CANCELLED,
    "REVOKED": Kind.CANCELLED,
    "NODE_FAIL": Kind.NODE_LOST,
    "BOOT_FAIL": Kind.NODE_LOST,
    "OUT_OF_MEMORY": Kind.KERNEL_OUT_OF_MEMORY,
}


def first_failure(evidence: Evidence) -> Failure:
    """The first cause. Who only lost a peer is no cause, however early it said so, as long as there is another."""
    unstarted = _unstarted(evidence)
    if unstarted is not None:
        return unstarted
    notes = noted_failures(evidence)
    first_victim = min((note for note in notes if note.is_victim), key=_time, default=None)
    causes = [note for note in notes if not note.is_victim]
    causes += [death for death in silent_failures(evidence) if _came_before(death, first_victim)]
    own = [cause for cause in causes if not cause.is_victim]
    ended = _ended_from_outside(evidence)
    if own:
        first = min(own, key=_began)
        return ended if ended is not None and _is_killing(first) else first
    return ended or _rendezvous(evidence) or first_victim or min(causes, key=_time, default=None) or _nobody(evidence)


def noted_failures(evidence: Evidence) -> list[Failure]:
    """What the ranks wrote about themselves."""
    node_of = {end.host: end.node_rank for end in evidence.ends}
    return [
        Failure(
            kind=recognise(note.error_type, note.message) or Kind.EXCEPTION,
            time_s=note.time_s,
            rank=note.rank,
            node=node_of.get(note.host, 0 if evidence.num_nodes == 1 else None),
            host=note.host,
            error_type=note.error_type,
            message=note.message,
            step=note.step,
            phase=note.phase,
        )
        for note in sorted(evidence.failures, key=lambda note: note.time_s)
    ]


def all_failures(evidence: Evidence) -> list[Failure]:
    """Every rank that failed, by itself or with the others."""
    return [*noted_failures(evidence), *silent_failures(evidence)]


def _time(failure: Failure) -> float:
    return failure.time_s or 0.0


def _began(failure: Failure) -> tuple[float, int]:
    """When it really happened: a death is seen a little later, and what was killed first is what the rest followed."""
    assert failure.rank is not None
    return _time(failure) - (NOTICE_S if failure.is_killed else 0.0), failure.rank


def _came_before(death: Failure, first_victim: Failure | None) -> bool:
    """Whether a rank died early enough to be why another lost its peer; later, it was ended with the rest."""
    if first_victim is None or not death.is_killed:
        return True
    notice_s = NOTICE_S if death.host == first_victim.host else NOTICE_ELSEWHERE_S
    return _time(death) <= _time(first_victim) + notice_s


def _is_killing(failure: Failure) -> bool:
    """Whether this is what being ended from outside looks like."""
    return failure.kind is Kind.SIGNAL and failure.exit_code in (-signal.SIGKILL, -signal.SIGTERM)


def _ended_from_outside(evidence: Evidence) -> Failure | None:
    """The loss of a node, or what the scheduler did."""
    word = evidence.word
    kind = BY_SCHEDULER.get(word.state) if word is not None else None
    lost = lost_nodes(evidence)
    if kind in (None, Kind.NODE_LOST) and lost:
        return Failure(kind=Kind.NODE_LOST, node=lost[0], host=host_of(evidence, lost[0]))
    return None if kind is None else Failure(kind=kind)


def _unstarted(evidence: Evidence) -> Failure | None:
    """A node that could not even start its ranks; the others were ended for it."""
    for end in evidence.ends:
        if end.is_unstarted:
            kind = recognise_text(end.ended_by) or Kind.EXIT
            return Failure(kind=kind, node=end.node_rank, host=end.host, message=end.ended_by)
    return None


def _rendezvous(evidence: Evidence) -> Failure | None:
    failed = (*missing_nodes(evidence), *failed_rendezvous(evidence)) if evidence.present else ()
    if not failed:
        return None
    # Slurm says why nothing came of a node: its Python is not there, or its disk.
    why = next((said for said in said_of_nodes(evidence) if said[0] == failed[0]), None)
    return (
        _as_said(evidence, *why)
        if why
        else Failure(kind=Kind.RENDEZVOUS, node=failed[0], host=host_of(evidence, failed[0]))
    )


def _as_said(evidence: Evidence, node: int, line: str) -> Failure:
    kind = recognise_text(line)
    assert kind is not None, "only lines that mean something are taken from a job's output"
    return Failure(kind=kind, node=node, host=host_of(evidence, node), message=line)


def _nobody(evidence: Evidence) -> Failure:
    """No rank said or did anything: what the programs that start them printed, or the scheduler's reason."""
    for node, text in sorted(evidence.agent_texts.items()):
        kind = recognise_log(tuple(text.splitlines()))
        if kind is not None:
            return Failure(kind=kind, node=node, host=host_of(evidence, node))
    for named in said_of_nodes(evidence):
        return _as_said(evidence, *named)
    kind = recognise_log(tuple(evidence.job_text.splitlines()))
    if kind is not None:
        return Failure(kind=kind)
    word = evidence.word
    if word is not None and word.reason and word.reason != "None":
        return Failure(kind=Kind.SCHEDULER)
    return Failure(kind=Kind.UNKNOWN)
