"""Follow files that others append to: whole lines only, each exactly once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Metrics
from launcher.runs.records import EvalMetrics, Event, TrainMetrics

METRICS_BY_KIND: dict[object, type[Metrics]] = {"train": TrainMetrics, "eval": EvalMetrics}


class LineTail:
    """The lines appended to a file since it was last asked. A line counts once its newline is there."""

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self.path = path
        self._offset = offset

    @classmethod
    def from_end(cls, path: Path) -> LineTail:
        """Begin after what the file holds now."""
        return cls(path, offset=path.stat().st_size if path.exists() else 0)

    def read(self) -> list[bytes]:
        """The new whole lines, without their newlines. A file that is not there yet has none."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        complete = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.splitlines()


class RunTail:
    """What a run's ranks and launchers write from now on."""

    def __init__(self, run: RunFolder) -> None:
        self._events = LineTail.from_end(run.events)
        self._metrics = LineTail.from_end(run.metrics)

    def read(self) -> tuple[list[Event], list[Metrics]]:
        """The events and the metrics that came in since it was last asked."""
        events = [event for line in self._events.read() if (event := decode_event(line)) is not None]
        metrics = [record for line in self._metrics.read() if (record := decode_metrics(line)) is not None]
        return events, metrics


def decode_event(line: bytes) -> Event | None:
    """An event, or None for a line that is none."""
    try:
        return msgspec.json.decode(line, type=Event)
    except msgspec.DecodeError:
        return None


def decode_metrics(line: bytes) -> Metrics | None:
    """Training or evaluation metrics, told apart by `kind`; None for a line that is neither."""
    try:
        raw: Any = msgspec.json.decode(line)
        kind = METRICS_BY_KIND.get(raw.get("kind")) if isinstance(raw, dict) else None
        return None if kind is None else msgspec.convert(raw, type=kind)
    except (msgspec.DecodeError, TypeError):
        return None


def read_events(path: Path) -> tuple[Event, ...]:
    """All events of a run so far."""
    return tuple(event for line in LineTail(path).read() if (event := decode_event(line)) is not None)


def read_metrics(path: Path) -> tuple[Metrics, ...]:
    """All metrics of a run so far."""
    return tuple(metrics for line in LineTail(path).read() if (metrics := decode_metrics(line)) is not None)


def last_lines(path: Path, count: int, *, window_bytes: int = 64 * 1024) -> tuple[str, ...]:
    """The last lines of a log, looking no further back than the window; none where there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - window_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ()
    lines = text.splitlines()
    if size > window_bytes:
        lines = lines[1:]
    return tuple(lines[-count:])
