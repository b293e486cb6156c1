"""What the nodes say of themselves, and what is found to be wrong. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.targets.facts import HostFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport(HostFacts):
    """What a node says of itself.

    sees_folder, can_write: the shared folder. address, interface: where the other nodes reach it; network_problem: why
    it has none. shm: /dev/shm. port: on which it listens for the others.
    """

    node_rank: int
    host: str
    sees_folder: bool
    can_write: bool
    address: str
    interface: str | None
    network_problem: str
    port: int
    disk_free_bytes: int | None
    shm_total_bytes: int
    shm_free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Which other nodes a node could not reach over the network."""

    node_rank: int
    unreachable: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Who takes part in the all-reduce, and where they meet; by the first of them, for all."""

    nodes: tuple[int, ...]
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksEnd:
    """How the ranks of a node ended their all-reduce. tail: the last lines of what they said, where they failed."""

    node_rank: int
    exit_code: int | None
    tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduced:
    """What one rank measured. bytes_per_s: the size of the tensor over the time of one all-reduce."""

    rank: int
    host: str
    backend: str
    world_size: int
    size_bytes: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        """How fast."""
        return self.size_bytes / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All that the nodes said. hosts: their names by number. said: other lines of a node's output; rest: nobody's."""

    hosts: tuple[str, ...] = ()
    reports: Mapping[int, NodeReport] = field(default_factory=dict)
    reached: Mapping[int, Reached] = field(default_factory=dict)
    ends: Mapping[int, RanksEnd] = field(default_factory=dict)
    reduced: Mapping[int, AllReduced] = field(default_factory=dict)
    said: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    rest: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong, and the way out. node: its number; None for this host, or for all nodes together."""

    node: int | None
    rule: str
    way_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What was found. failing: names of nodes to keep away from."""

    kind: str
    answers: Answers
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def failing(self) -> tuple[str, ...]:
        """The nodes that something is wrong with, in their order."""
        nodes = sorted({finding.node for finding in self.findings if finding.node is not None})
        return tuple(self.answers.hosts[node] for node in nodes if node < len(self.answers.hosts))
