"""What jobs.calibrate reads off a device, as it tells the launcher: raw, so that the arithmetic can be repeated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at the device, after `stage`. used_bytes: of this process where the driver tells it (else of the whole
    device, less what was used before it began); reserved_bytes and allocated_bytes: torch's own."""

    stage: str
    used_bytes: int
    reserved_bytes: int
    allocated_bytes: int

    @property
    def outside_bytes(self) -> int:
        """What the process holds beside torch's allocator."""
        return self.used_bytes - self.reserved_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it was read. gpu: the driver's product name, '' on a CPU. versions: torch, cuda, nccl and the rest."""

    host: str
    gpu: str
    driver: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextReadings:
    """One process, from its first touch of the device to the kernels of a training step."""

    place: Place
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclReadings:
    """The readings of every rank of one node, in the order of the ranks: a first communicator, collective by
    collective, and then a second one over the same ranks."""

    place: Place
    ranks: tuple[tuple[Reading, ...], ...]
