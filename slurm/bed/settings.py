"""What a bed is made of. Every bed has a network of its own, so that all beds may use the same addresses."""

from __future__ import annotations

from dataclasses import dataclass

HEAD = "head"
HEAD_ADDRESS = "10.77.0.1"
BRIDGE = "br0"
MAX_NODES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A compute node; its number begins at 1."""

    number: int

    @property
    def name(self) -> str:
        """Its host name and its name in Slurm."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """Its address on the bed's bridge."""
        return f"10.77.0.{10 + self.number}"

    @property
    def link(self) -> str:
        """The head's end of its cable."""
        return f"v{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BedSettings:
    """CPUs, memory and GPUs are what Slurm believes of each node; nothing of it need exist.

    loopback_hostname makes each node's own name resolve to 127.0.1.1, as Debian's installer does.
    slurm_conf are lines after our own, where Slurm takes the last of two.
    """

    num_nodes: int = 3
    num_cpus_per_node: int = 16
    memory_mib_per_node: int = 64_000
    num_gpus_per_node: int = 8
    preemption_grace_s: int = 20
    loopback_hostname: bool = False
    slurm_conf: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_nodes <= MAX_NODES:
            raise ValueError(f"num_nodes={self.num_nodes} is not in 1..{MAX_NODES}")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, in order."""
        return tuple(Node(number=number) for number in range(1, self.num_nodes + 1))
