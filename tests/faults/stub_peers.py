"""What makes the ranks of stubs that join nobody notice each other's death, as a collective would: files that beat."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

BEAT_S = 0.3
SILENCE_S = 3.0
DONE = "done"


class Peers:
    """The ranks of an attempt, by a file of each in its folder, which all nodes share."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self._own = folder / f"stub-{rank}"
        self._others = {other: folder / f"stub-{other}" for other in range(world_size) if other != rank}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise where a rank that was there has fallen silent."""
        for rank, path in self._others.items():
            with contextlib.suppress(FileNotFoundError):
                silent_s = time.time() - path.stat().st_mtime
                if silent_s > SILENCE_S and path.read_text() != DONE:
                    raise RuntimeError(f"Connection closed by peer: rank {rank}")

    def leave(self) -> None:
        """End in order: nobody misses this rank."""
        self._is_over.set()
        self._thread.join()
        self._own.write_text(DONE)

    def _beat(self) -> None:
        while not self._is_over.is_set():
            self._own.write_text(str(time.time()))
            self._is_over.wait(BEAT_S)
