"""When something cannot be traced."""

from __future__ import annotations


class TraceFailed(RuntimeError):
    """There is no trace, and why. The closed form answers instead, and the user is told."""
