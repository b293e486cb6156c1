"""Traces that were made before, by key: only their summaries, which are small. An entry that cannot be read is none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.planner.tracing.summary import Summary

KEPT_ENTRIES = 1000


def cache_dir(environ: Mapping[str, str]) -> Path:
    """FITLAUNCH_CACHE, or fitlaunch in XDG_CACHE_HOME, or ~/.cache/fitlaunch; in it, the folder of traces."""
    if chosen := environ.get("FITLAUNCH_CACHE"):
        return Path(chosen).expanduser().absolute() / "traces"
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fitlaunch" / "traces"


@dataclass(frozen=True, slots=True)
class TraceCache:
    """A folder of summaries."""

    folder: Path

    def load(self, key: str) -> Summary | None:
        """The summary that was kept under a key; None where there is none that can be read."""
        try:
            return msgspec.msgpack.decode(self._entry(key).read_bytes(), type=Summary)
        except (OSError, msgspec.DecodeError):
            return None

    def store(self, key: str, summary: Summary) -> None:
        """Keep a summary, in one step; a cache that cannot be written is no reason to fail."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{key[:16]}.")
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.msgpack.encode(summary))
            Path(temporary).replace(self._entry(key))
            self._remove_oldest()
        except OSError:
            return

    def _remove_oldest(self) -> None:
        entries = sorted(self.folder.glob("*.summary"), key=lambda path: path.stat().st_mtime)
        for path in entries[:-KEPT_ENTRIES]:
            path.unlink(missing_ok=True)

    def _entry(self, key: str) -> Path:
        return self.folder / f"{key}.summary"
