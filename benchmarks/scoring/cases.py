"""Measured cases: one JSON object a line, read into a frozen Case. Nothing is guessed here, and no line is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

MIB, GIB = 1024**2, 1024**3


class Metric(StrEnum):
    """What was measured. Never mixed: each has a prediction of its own."""

    ALLOCATED = "allocated"
    RESERVED = "reserved"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One figure of one case."""

    metric: Metric
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row as it was published. `row` keeps its free text; measured[0] is the row's own figure."""

    id: str
    source: str
    fully_specified: bool
    measured: tuple[Measured, ...]
    row: Mapping[str, Any]

    @property
    def group(self) -> str:
        """The family that the case belongs to: the first word of its id."""
        return self.id.split("-")[0]

    def text(self, *fields: str) -> str:
        """The named fields as one lower-case text, missing ones left out."""
        return " ".join(str(self.row[field]) for field in fields if self.row.get(field) is not None).lower()


def read_cases(path: Path) -> tuple[list[Case], list[tuple[str, str]]]:
    """The cases of a file, and its lines that are none as (where, why)."""
    cases: list[Case] = []
    refused: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            refused.append((where, f"not JSON: {problem.msg}"))
            continue
        if not isinstance(row, dict):
            refused.append((where, "not a JSON object"))
            continue
        name = str(row.get("id") or where)
        measured = read_measured(row)
        if not measured:
            refused.append((name, "no figure: measured_gib is missing or says neither what kind it is"))
            continue
        cases.append(
            Case(
                id=name,
                source=str(row.get("source") or "not stated"),
                fully_specified=row.get("fully_specified") is True,
                measured=measured,
                row=row,
            )
        )
    return cases, refused


def read_metric(kind: str) -> Metric | None:
    """What a row's metric_kind means; None where the words say neither."""
    kind = kind.lower()
    if "reserved" in kind or "cached" in kind:
        return Metric.RESERVED
    if "allocated" in kind or "active" in kind:
        return Metric.ALLOCATED
    if any(word in kind for word in ("nvidia-smi", "process", "nvml", "wandb", "system gpu memory", "driver")):
        return Metric.PROCESS
    return None


SECONDARY = (
    ("max_allocated_gib", Metric.ALLOCATED, GIB),
    ("peak_allocated_mib", Metric.ALLOCATED, MIB),
    ("max_reserved_gib", Metric.RESERVED, GIB),
    ("peak_reserved_mib", Metric.RESERVED, MIB),
    ("process_mib", Metric.PROCESS, MIB),
    ("process_gib", Metric.PROCESS, GIB),
)


def read_measured(row: Mapping[str, Any]) -> tuple[Measured, ...]:
    """The row's own figure, in exact bytes where it has them, and the others it gives of another kind.

    A mean of several polled GPUs with the idle use taken off is no process size, so nvidia_smi_mib_mean_over_gpus is
    left out.
    """
    found: dict[Metric, int] = {}
    metric = read_metric(str(row.get("metric_kind", "")))
    if metric is not None and (size := _own_bytes(row)):
        found[metric] = size
    secondary = row.get("secondary")
    for name, kind, unit in SECONDARY if isinstance(secondary, dict) else ():
        value = secondary.get(name)
        if kind not in found and isinstance(value, int | float) and value > 0:
            found[kind] = round(value * unit)
    return tuple(Measured(metric=kind, size_bytes=size) for kind, size in found.items())


def _own_bytes(row: Mapping[str, Any]) -> int | None:
    value, _, unit = str(row.get("measured_raw") or "").partition(" ")
    factor = {"bytes": 1, "b": 1, "mib": MIB, "gib": GIB}.get(unit.strip().lower())
    if factor:
        try:
            return round(float(value) * factor)
        except ValueError:
            pass
    gib = row.get("measured_gib")
    return round(gib * GIB) if isinstance(gib, int | float) and gib > 0 else None
