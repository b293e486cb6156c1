"""The first cause as one sentence."""

from __future__ import annotations

import signal

from launcher.runs.diagnosis.deaths import describe_exit
from launcher.runs.diagnosis.nodes import failed_rendezvous, missing_nodes, node_names
from launcher.runs.diagnosis.types import Evidence, Failure, Kind, MemoryUse
from launcher.runs.diagnosis.waiting import awaited_ranks
from launcher.units import format_bytes


def sentence(failure: Failure, evidence: Evidence, memory: MemoryUse | None) -> str:
    """What happened, to whom, where; without a full stop."""
    if failure.rank is not None:
        return _of_rank(failure, evidence, memory)
    if failure.kind is Kind.RENDEZVOUS:
        return _rendezvous(evidence)
    state = "" if evidence.word is None else evidence.word.state
    reason = "" if evidence.word is None else evidence.word.reason
    told = {
        Kind.NODE_LOST: _lost(failure, evidence) + (f" ({state})" if state else ""),
        Kind.TIME_LIMIT: f"the job reached its time limit and was ended ({state})",
        Kind.PREEMPTED: "the job was preempted and had not saved in time",
        Kind.CANCELLED: "the job was cancelled",
        Kind.KERNEL_OUT_OF_MEMORY: "the kernel killed a process of the job for want of memory",
        Kind.SCHEDULER: f"{'the job ended' if evidence.present else 'no rank was started'}: {state} ({reason})",
    }
    if failure.kind in told:
        return told[failure.kind]
    if failure.node is not None:
        return f"no rank was started on {node_names(evidence, (failure.node,))}: {failure.message or failure.kind}"
    if failure.kind is Kind.DISK_FULL:
        return "nothing could be written any more: the disk with the run folder is full"
    if failure.kind is not Kind.UNKNOWN:
        return f"no rank was started: {failure.kind}"
    return f"the ranks ended without a result; {evidence.otherwise}".removesuffix("; ")


def who(failure: Failure, evidence: Evidence) -> str:
    """'rank 3', and on several nodes 'rank 3 on beta'."""
    where = failure.host or ("" if failure.node is None else f"node {failure.node}")
    return f"rank {failure.rank} on {where}" if evidence.num_nodes > 1 and where else f"rank {failure.rank}"


def first_line(message: str) -> str:
    """The line that an error begins with."""
    return message.strip().partition("\n")[0]


def _of_rank(failure: Failure, evidence: Evidence, memory: MemoryUse | None) -> str:
    name = who(failure, evidence)
    if failure.kind is Kind.CUDA_OUT_OF_MEMORY:
        return f"{name} ran out of GPU memory{_place(failure)}{_numbers(memory)}"
    if failure.kind is Kind.KERNEL_OUT_OF_MEMORY:
        return f"{name} was killed by the kernel: the node had no more memory for the job"
    if failure.kind is Kind.COLLECTIVE_TIMEOUT:
        return f"{name} waited in vain in a collective{_awaited(evidence)}"
    if failure.exit_code is not None:
        text = f"{name} {describe_exit(failure.exit_code)}"
        if failure.kind is Kind.SIGNAL and failure.exit_code == -signal.SIGKILL:
            return f"{text}, which is also what the kernel does when the host is out of memory (see dmesg)"
        return text if failure.kind in (Kind.SIGNAL, Kind.EXIT) else f"{text}: {failure.kind}"
    line = first_line(failure.message)
    return f"{name} failed with {failure.error_type}" + (f": {line}" if line else "")


def _place(failure: Failure) -> str:
    phase = f" in {failure.phase}" if failure.phase else ""
    return f"{phase} at step {failure.step}" if failure.step else phase


def _numbers(memory: MemoryUse | None) -> str:
    if memory is None or memory.tried_bytes is None:
        return ""
    text = f": it asked for {format_bytes(memory.tried_bytes)} more"
    if memory.in_use_bytes is None:
        return text
    of = "" if memory.capacity_bytes is None else f" of {format_bytes(memory.capacity_bytes)}"
    return f"{text} with {format_bytes(memory.in_use_bytes)}{of} in use"


def _awaited(evidence: Evidence) -> str:
    ranks = awaited_ranks(evidence)
    if not ranks:
        return ""
    listed = ", ".join(map(str, ranks))
    return f": {'rank' if len(ranks) == 1 else 'ranks'} {listed} did not come to it"


def _lost(failure: Failure, evidence: Evidence) -> str:
    if failure.node is None:
        return "a node of the job was lost"
    why = next((end.ended_by for end in evidence.ends if end.is_lost and end.node_rank == failure.node), "")
    return f"{node_names(evidence, (failure.node,))} was lost" + (f": {why}" if why else "")


def _rendezvous(evidence: Evidence) -> str:
    missing = missing_nodes(evidence)
    if missing:
        return f"the nodes did not all meet: {node_names(evidence, missing)} did not come"
    outside = tuple(node for node in failed_rendezvous(evidence) if node != 0)
    head = node_names(evidence, (0,))
    if outside:
        return f"the nodes did not all meet: {node_names(evidence, outside)} could not reach {head}"
    return f"the nodes did not all meet: {head} waited in vain"
