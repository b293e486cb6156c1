"""What a rule may look at, and what a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from launcher.errors import Problem
from launcher.host import Host
from launcher.models import ModelShape
from launcher.spec import JobSpec, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a rule may look at."""

    spec: JobSpec
    shape: ModelShape
    mode: Mode
    host: Host

    @property
    def older_than_ampere(self) -> bool:
        """Compute capability below 8.0: no bf16 arithmetic, no flash-attention 2. Unknown for a card nobody named."""
        capability = self.spec.device.compute_capability
        return capability is not None and capability < (8, 0)


Rule = Callable[[Case], Iterator[Problem]]
