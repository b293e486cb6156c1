"""Amounts that no formula gives, by card and versions, each with where it comes from.

They stand in data/constants.yaml. What `fitlaunch calibrate` measured on a host is taken before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from launcher.spec import DeviceSpec, ShardKind

TABLE = Path(__file__).parent / "data" / "constants.yaml"


class Basis(StrEnum):
    """How an amount is known: measured by this project or its user, published by someone else, or assumed."""

    MEASURED = "measured"
    PUBLISHED = "published"
    ASSUMED = "assumed"


class Key(StrEnum):
    """The amounts there are: bytes, but those that begin with num_ are counts, and with percent_ shares."""

    CUDA_CONTEXT = "cuda_context_bytes"
    CUBLAS_WORKSPACE = "cublas_workspace_bytes"
    NCCL_BASE = "nccl_base_bytes"
    NCCL_CHANNELS = "num_nccl_channels"
    NVLS_CHANNELS = "num_nvls_channels"
    NCCL_COMMUNICATORS = "nccl_communicators_bytes"
    CUDA_HOST = "cuda_host_bytes"
    DATA_WORKER = "data_worker_bytes"
    GPU_RANK = "gpu_rank_process_bytes"
    CPU_PROCESS = "cpu_process_bytes"
    CPU_SLACK = "percent_cpu_slack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """An amount with its provenance."""

    amount: int
    basis: Basis
    source: str

    @property
    def provenance(self) -> str:
        """Basis and source in one line, as a term's source."""
        return f"{self.basis}: {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """What an entry is for; what is None does not matter.

    gpus: names of cards without their size ('a100'). num_ranks: of one node, and where no entry has the job's own
    number, the next larger one counts, then the largest.
    """

    gpus: tuple[str, ...] | None = None
    compute_capability: tuple[int, int] | None = None
    majors: tuple[int, ...] | None = None
    shards: tuple[ShardKind, ...] | None = None
    num_ranks: int | None = None

    def matches(self, device: DeviceSpec, shard: ShardKind | None) -> bool:
        """Whether an entry is for this device and sharding."""
        capability = device.compute_capability
        return (
            (self.shards is None or shard in self.shards)
            and (self.gpus is None or card_family(device.name) in self.gpus)
            and (self.compute_capability is None or self.compute_capability == capability)
            and (self.majors is None or (capability is not None and capability[0] in self.majors))
        )

    @property
    def precision(self) -> int:
        """How narrow the condition is: a card before its capability, that before its major version."""
        given = (self.gpus, self.compute_capability, self.majors, self.shards)
        return sum(weight for weight, value in zip((8, 4, 2, 1), given, strict=True) if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the table. priority: 0 for the table itself, more for what was measured on the user's hosts."""

    constant: Constant
    when: When = field(default_factory=When)
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Constants:
    """Every amount with all its entries."""

    entries: Mapping[Key, tuple[Entry, ...]]

    def find(
        self, key: Key, device: DeviceSpec, *, shard: ShardKind | None = None, num_ranks: int | None = None
    ) -> Constant | None:
        """The most specific entry for a device; None where there is none. The later of two equal ones counts."""
        best: tuple[tuple[int, int, int], Constant] | None = None
        for entry in self.entries.get(key, ()):
            if entry.when.matches(device, shard):
                rank = (entry.priority, entry.when.precision, -_distance(entry.when.num_ranks, num_ranks))
                if best is None or rank >= best[0]:
                    best = (rank, entry.constant)
        return None if best is None else best[1]

    def get(self, key: Key, device: DeviceSpec, *, shard: ShardKind | None = None) -> Constant:
        """The most specific entry for a device, of an amount that has one for every device."""
        found = self.find(key, device, shard=shard)
        assert found is not None, f"{TABLE} has no {key} for {device.name}"
        return found

    def joined(self, more: Mapping[Key, tuple[Entry, ...]]) -> Constants:
        """These and more entries."""
        keys = {*self.entries, *more}
        return Constants({key: (*self.entries.get(key, ()), *more.get(key, ())) for key in keys})


def _distance(measured: int | None, wanted: int | None) -> int:
    """How far a measured number of ranks is from the wanted one; too few counts for more than too many."""
    if measured is None or wanted is None:
        return 0
    return measured - wanted if measured >= wanted else (wanted - measured) * 1_000


def card_family(name: str) -> str:
    """A listed card's name without its size: 'a100-80g' is an a100."""
    head, _, size = name.rpartition("-")
    return head if head and size.endswith("g") and size[:-1].isdigit() else name


@cache
def listed_constants() -> Constants:
    """The table as it is shipped."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, list[dict[str, Any]]] = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    return Constants({Key(key): tuple(map(_entry, lines)) for key, lines in found.items()})


def _entry(line: dict[str, Any]) -> Entry:
    when = line.get("when", {})
    capability = when.get("compute_capability")
    constant = Constant(amount=line["amount"], basis=Basis(line["basis"]), source=line["source"])
    return Entry(
        constant=constant,
        when=When(
            gpus=tuple(when["gpu"]) if "gpu" in when else None,
            compute_capability=None if capability is None else (capability[0], capability[1]),
            majors=tuple(when["major"]) if "major" in when else None,
            shards=tuple(map(ShardKind, when["shard"])) if "shard" in when else None,
        ),
    )
