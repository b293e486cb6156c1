"""A job's own stream of allocations, written down from its formulas, for the caching allocator's replay."""

from __future__ import annotations

from launcher.planner.stream.step import events

__all__ = ["events"]
