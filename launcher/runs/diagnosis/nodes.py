"""Nodes that never came, and nodes that went away."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.runs.diagnosis.signs import recognise_text
from launcher.runs.diagnosis.types import Evidence, Kind

ENDED = "Exited with exit code"


def missing_nodes(evidence: Evidence) -> tuple[int, ...]:
    """Nodes on which no agent was ever seen."""
    return tuple(node for node in range(evidence.num_nodes) if node not in evidence.present)


def lost_nodes(evidence: Evidence) -> tuple[int, ...]:
    """Nodes that came and never said how they ended, while others did: power, network, or a killed agent. A launcher
    that held the agent knows, and has said so."""
    lost = {end.node_rank for end in evidence.ends if end.is_lost}
    ended = {end.node_rank for end in evidence.ends} - lost
    return tuple(sorted(lost | (evidence.present - ended if ended else frozenset())))


def said_of_node(evidence: Evidence, node: int) -> tuple[str, ...]:
    """What stands about a node in the output of the job: '... node2: task 1: Exited with exit code 2' and why.

    Why is said by the node itself, in a line that need not name it.
    """
    host = host_of(evidence, node)
    lines = evidence.job_text.splitlines() if host else []
    if not any(re.search(rf"\b{re.escape(host)}\b.*{ENDED}", line) for line in lines):
        return ()
    return tuple(line for line in lines if ENDED not in line and recognise_text(line) is not None)


def failed_rendezvous(evidence: Evidence) -> tuple[int, ...]:
    """Nodes whose program says that they did not all meet."""
    return tuple(node for node, text in sorted(evidence.agent_texts.items()) if recognise_text(text) is Kind.RENDEZVOUS)


def node_names(evidence: Evidence, nodes: Sequence[int]) -> str:
    """'node 1 (beta)', 'nodes 1 (beta) and 2 (gamma)'."""
    names = [f"{node} ({host})" if (host := host_of(evidence, node)) else str(node) for node in nodes]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{'node' if len(names) == 1 else 'nodes'} {listed}"


def host_of(evidence: Evidence, node: int) -> str:
    """The name of a node: as its own agent wrote it, or as it was asked for."""
    for end in evidence.ends:
        if end.node_rank == node:
            return end.host
    return evidence.hosts[node] if node < len(evidence.hosts) else ""
