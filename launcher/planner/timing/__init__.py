"""How long an optimizer step takes, roughly: a small roofline model, good for comparing two forms of one job.

speeds.py says what a card, its links and its host can do, each with its source; operations.py counts floating-point
operations and bytes of memory traffic; transfers.py counts what goes between ranks and to the host; step.py adds up.
It is an estimate: it knows no kernel, and takes the usual share of a card's peak.
"""

from __future__ import annotations

from launcher.planner.timing.step import Part, StepTime, step_time

__all__ = ["Part", "StepTime", "step_time"]
