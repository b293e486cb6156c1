"""Everyday questions about memory, answered without Hydra and without starting anything: what fits this card?

words.py reads the question, grid.py plans every method under every sharding, largest.py searches for the biggest batch
and the longest sequence, answer.py puts the answer together.
"""

from __future__ import annotations

from launcher.fitting.answer import answer
from launcher.fitting.types import Answer, Job, Refusal, Row

__all__ = ["Answer", "Job", "Refusal", "Row", "answer"]
