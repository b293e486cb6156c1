"""The CUDA caching allocator replayed without a GPU: what a recorded stream reserves, and what it needs to survive."""

from __future__ import annotations

from launcher.planner.allocator.replay import PhasePeak, Replay, least_allocated_bytes, least_capacity_bytes, replay

__all__ = ["PhasePeak", "Replay", "least_allocated_bytes", "least_capacity_bytes", "replay"]
