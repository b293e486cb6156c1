"""A launcher that starts an agent over ssh holds its standard input open, and writes to it every few seconds.

The first line is one JSON object of environment variables for the ranks. They come this way, secrets among them, and
so stand on no command line and in no file. When the pipe ends, the launcher has; a link that is cut ends no pipe, so
silence counts as well.
"""

from __future__ import annotations

import os
import threading
import time
from typing import BinaryIO

import msgspec

CHUNK_BYTES = 4096
SILENCE_S = 60.0


class LauncherGone(Exception):
    """The launcher ended before it had said all that is needed to start."""


class Leash:
    """The pipe from the launcher, read to its end by a thread of its own. environment: what it said first."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._descriptor = pipe.fileno()
        self.environment = _read_environment(pipe)
        self._heard_at_s = time.monotonic()
        self._has_ended = False
        threading.Thread(target=self._read_on, name="leash", daemon=True).start()

    def loss(self) -> str:
        """Why the launcher must be taken for gone; '' while it is there."""
        if self._has_ended:
            return "the launcher is gone"
        silent_s = time.monotonic() - self._heard_at_s
        return f"nothing was heard of the launcher for {silent_s:.0f} s" if silent_s > SILENCE_S else ""

    def _read_on(self) -> None:
        try:
            while os.read(self._descriptor, CHUNK_BYTES):
                self._heard_at_s = time.monotonic()
        finally:
            self._has_ended = True


def _read_environment(pipe: BinaryIO) -> dict[str, str]:
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise LauncherGone("the launcher was gone before it had said with which environment the ranks start")
    try:
        return msgspec.json.decode(line, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise LauncherGone(f"the first line on standard input is no JSON object of strings: {error}") from error
