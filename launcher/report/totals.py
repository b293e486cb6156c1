"""Sums over a plan's terms that more than one view shows."""

from __future__ import annotations

from launcher.planner.types import Phase, RankPlan, TermKind


def bytes_by_kind(rank: RankPlan, phase: Phase) -> dict[TermKind, int]:
    """Allocated bytes of a rank at a phase's peak, by kind, in the order of TermKind; kinds with none are left out."""
    sums = {
        kind: sum(term.size_bytes for term in rank.terms if term.kind is kind and phase in term.phases)
        for kind in TermKind
        if kind is not TermKind.OUTSIDE
    }
    return {kind: size_bytes for kind, size_bytes in sums.items() if size_bytes}
