"""A job's own stream of allocations, written down from its formulas, and what the caching allocator makes of it.

tape.py has the smallest autograd that knows how long tensors live; block.py, sharded.py and step.py are the model, the
sharding and the training step written against it; need.py puts the stream through the allocator's replay.
"""

from __future__ import annotations

from launcher.planner.stream.need import reserved_bytes
from launcher.planner.stream.step import events, is_written_down

__all__ = ["events", "is_written_down", "reserved_bytes"]
