"""A MemoryPlan as one JSON document, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.planner.types import MemoryPlan, Phase, RankPlan
from launcher.report.describe import num_parameters
from launcher.report.totals import bytes_by_kind
from launcher.spec import to_json


def plan_json(plan: MemoryPlan) -> str:
    """One JSON document: the frozen plan, and under 'derived' the totals that follow from it."""
    return to_json(_document(plan))


def plans_json(plans: Sequence[MemoryPlan]) -> str:
    """The plans of a multirun as one JSON array."""
    return to_json([_document(plan) for plan in plans])


def _document(plan: MemoryPlan) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(plan)
    document["derived"] = {
        "num_parameters": num_parameters(plan.spec),
        "world_size": plan.spec.world_size,
        "gradient_accumulation": plan.spec.gradient_accumulation,
        "ranks": [_rank_totals(rank) for rank in plan.ranks],
    }
    return document


def _rank_totals(rank: RankPlan) -> dict[str, Any]:
    return {
        "ranks": list(rank.ranks),
        "peak_phase": rank.peak_phase.value,
        "allocated_bytes": rank.allocated_bytes,
        "outside_bytes": rank.outside_bytes,
        "allocated_bytes_by_phase": {phase.value: rank.allocated_bytes_in(phase) for phase in Phase},
        "allocated_bytes_by_kind_at_peak": {k.value: v for k, v in bytes_by_kind(rank, rank.peak_phase).items()},
    }
