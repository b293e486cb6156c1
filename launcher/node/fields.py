"""What stands in a launch plan's argv for things that are known only when an attempt starts on a node."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.render.types import NODE_FIELDS

FIELD = re.compile("|".join(map(re.escape, NODE_FIELDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFields:
    """One node in one attempt. head, port: where its nodes meet. address: of this node, as the others reach it.
    rendezvous: a name that no other attempt of any run has."""

    node_rank: int
    head: str
    port: int
    address: str
    rendezvous: str

    @property
    def is_head(self) -> bool:
        """Whether the nodes meet here."""
        return self.node_rank == 0


def fill(argv: Sequence[str], fields: NodeFields) -> tuple[str, ...]:
    """The command of this node. Every field is replaced once: what a value holds is not looked at again."""
    values = {
        "{node_rank}": str(fields.node_rank),
        "{head}": fields.head,
        "{port}": str(fields.port),
        "{address}": fields.address,
        "{is_head}": str(int(fields.is_head)),
        "{rendezvous}": fields.rendezvous,
    }
    return tuple(FIELD.sub(lambda found: values[found[0]], word) for word in argv)
