"""The edge: gather what is left of an attempt, and keep what was found. Anything may be missing."""

from __future__ import annotations

import dataclasses

import msgspec

from launcher.planner.types import MemoryPlan, Phase
from launcher.runs.called import run_argument
from launcher.runs.diagnosis.diagnose import TAIL_LINES, diagnose
from launcher.runs.diagnosis.types import Diagnosis, Evidence, SchedulerWord
from launcher.runs.layout import RunFolder
from launcher.runs.logs import agent_log, job_logs, nodes_of, rank_logs
from launcher.runs.markers import read_markers, read_node_ends
from launcher.runs.records import NodeEnd, RankDeath, read_record, write_record
from launcher.runs.tail import last_lines
from launcher.spec import JobSpec

# The end of an agent's log, and the most ranks whose logs are read: those of a thousand ranks say the same.
AGENT_LINES = 200
MAX_RANKS = 256


def diagnose_attempt(
    run: RunFolder,
    attempt: int,
    *,
    word: SchedulerWord | None = None,
    deaths: tuple[RankDeath, ...] = (),
    otherwise: str = "",
) -> Diagnosis:
    """Who failed first in an attempt that has ended, left in its folder as diagnosis.json.

    word: what the scheduler says now. What it said before counts where it has forgotten the job since. deaths: what
    the launcher saw itself, where no node has written how it ended.
    """
    before = read_diagnosis(run, attempt)
    if word is None and before is not None:
        word = before.scheduler
    evidence = read_evidence(run, attempt, word=word, deaths=deaths, otherwise=otherwise)
    found = diagnose(evidence, run=run_argument(run.root))
    if before is not None and before.kind is found.kind:
        found = dataclasses.replace(found, overrides=before.overrides)
    if found != before:
        keep_diagnosis(run, found)
    return found


def keep_diagnosis(run: RunFolder, found: Diagnosis) -> None:
    """Leave it in the attempt's folder; a full disk, or another user's folder, must not keep it from being shown."""
    try:
        write_record(run.diagnosis(found.attempt), found)
    except OSError:
        return


def read_diagnosis(run: RunFolder, attempt: int) -> Diagnosis | None:
    """What was found before; None where nothing was, or nothing that can be read."""
    try:
        return read_record(run.diagnosis(attempt), Diagnosis)
    except msgspec.DecodeError:
        return None


def read_evidence(
    run: RunFolder,
    attempt: int,
    *,
    word: SchedulerWord | None = None,
    deaths: tuple[RankDeath, ...] = (),
    otherwise: str = "",
) -> Evidence:
    """All that is left of an attempt."""
    spec = read_record(run.job, JobSpec)
    markers = read_markers(run, attempt)
    ends = read_node_ends(run, attempt) or _seen_here(attempt, deaths)
    nodes = nodes_of(run, attempt)
    failed = {failure.rank for failure in markers.failures} | {death.rank for end in ends for death in end.deaths}
    world_size = max(failed, default=0) + 1 if spec is None else spec.world_size
    ranks = sorted(failed | set(range(min(world_size, MAX_RANKS))))
    plan = read_record(run.memory_plan, MemoryPlan)
    return Evidence(
        attempt=attempt,
        world_size=world_size,
        hosts=("",) if spec is None else _hosts(spec, word),
        present=frozenset(nodes),
        failures=markers.failures,
        ends=ends,
        word=word,
        agent_texts={node: "\n".join(last_lines(agent_log(run, attempt, node), AGENT_LINES)) for node in nodes},
        job_text=_job_text(run),
        rank_tails={rank: tail for rank in ranks if (tail := _tail(run, attempt, rank))},
        planned_bytes=None if plan is None else plan.process_bytes,
        planned_phase_bytes={} if plan is None else _phase_bytes(plan),
        otherwise=otherwise,
    )


def _job_text(run: RunFolder) -> str:
    """The end of what the scheduler kept of its newest job's output: what srun and its nodes say stands there."""
    kept = job_logs(run)
    return "\n".join(last_lines(kept[-1], AGENT_LINES)) if kept else ""


def _seen_here(attempt: int, deaths: tuple[RankDeath, ...]) -> tuple[NodeEnd, ...]:
    """What the launcher of this host saw of its ranks."""
    if not deaths:
        return ()
    end = NodeEnd(
        attempt=attempt,
        node_rank=0,
        host="",
        started_at_s=0.0,
        ended_at_s=max(death.seen_at_s for death in deaths),
        exit_code=None,
        deaths=deaths,
    )
    return (end,)


def _hosts(spec: JobSpec, word: SchedulerWord | None) -> tuple[str, ...]:
    """The nodes by number: Slurm numbers them in the order of its list, and so do we a list of hosts."""
    if spec.cluster.hosts is not None and len(spec.cluster.hosts.hosts) >= spec.nodes:
        return tuple(host.host for host in spec.cluster.hosts.hosts[: spec.nodes])
    if word is not None and len(word.nodes) == spec.nodes:
        return word.nodes
    return ("",) * spec.nodes


def _tail(run: RunFolder, attempt: int, rank: int) -> tuple[str, ...]:
    """The last lines of the most telling of a rank's logs that holds anything."""
    return next((lines for path in rank_logs(run, attempt, rank) if (lines := last_lines(path, TAIL_LINES * 2))), ())


def _phase_bytes(plan: MemoryPlan) -> dict[str, int]:
    return {phase.value: plan.worst_rank.allocated_bytes_in(phase) for phase in Phase}
