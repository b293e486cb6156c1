"""Nodes that never came, and nodes that went away."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.runs.diagnosis.signs import recognise_text
from launcher.runs.diagnosis.types import Evidence, Kind


def missing_nodes(evidence: Evidence) -> tuple[int, ...]:
    """Nodes on which no agent was ever seen."""
    return tuple(node for node in range(evidence.num_nodes) if node not in evidence.present)


def lost_nodes(evidence: Evidence) -> tuple[int, ...]:
    """Nodes that came and never said how they ended, while others did: power, network, or a killed agent. A launcher
    that held the agent knows, and has said so."""
    lost = {end.node_rank for end in evidence.ends if end.is_lost}
    ended = {end.node_rank for end in evidence.ends} - lost
    return tuple(sorted(lost | (evidence.present - ended if ended else frozenset())))


def said_of_nodes(evidence: Evidence) -> tuple[tuple[int, str], ...]:
    """What stands in the output of the job and means something, each line with the node that it names.

    Slurm's daemons say who they are: 'slurmstepd-node2: error: execve(): /venv/bin/python: No such file or directory'.
    """
    hosts = {host: node for node in range(evidence.num_nodes) if (host := host_of(evidence, node))}
    named = []
    for line in evidence.job_text.splitlines():
        node = next((node for host, node in hosts.items() if re.search(rf"\b{re.escape(host)}\b", line)), None)
        if node is not None and recognise_text(line) is not None:
            named.append((node, line))
    return tuple(named)


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
