"""How a term is made, and the groups of phases in which things live."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.planner.moments import Moment
from launcher.planner.types import Phase, Term, TermKind

ALWAYS = tuple(Phase)
FROM_WRAP = tuple(phase for phase in Phase if phase is not Phase.LOAD)
# The planner describes a steady step, so what the first optimizer step creates is there from the forward pass on.
FROM_FIRST_STEP = tuple(phase for phase in Phase if phase not in (Phase.LOAD, Phase.WRAP))
FORWARD_TO_OPTIMIZER = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)


def term(
    name: str, kind: TermKind, size_bytes: int, phases: Iterable[Phase], *, formula: str, source: str
) -> tuple[Term, ...]:
    """One term as a tuple to be joined with others; empty where there is nothing to hold."""
    assert size_bytes >= 0, f"{name}: {size_bytes} bytes"
    if size_bytes == 0:
        return ()
    return (Term(name=name, kind=kind, size_bytes=size_bytes, phases=tuple(phases), formula=formula, source=source),)


def at(moment: Moment, name: str, kind: TermKind, size_bytes: int, *, formula: str, source: str) -> tuple[Term, ...]:
    """A term that stands for what its phase holds at one moment."""
    return term(name, kind, size_bytes, (moment.phase,), formula=formula, source=source)


def peak_bytes(terms: Iterable[Term], phase: Phase) -> int:
    """Allocator bytes of `terms` in one phase."""
    return sum(t.size_bytes for t in terms if phase in t.phases and t.kind is not TermKind.OUTSIDE)
