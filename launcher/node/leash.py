"""A launcher that starts an agent over ssh holds its standard input open: once that ends, the launcher is gone.

The first line is one JSON object of environment variables for the ranks. They come this way, secrets among them, and
so stand on no command line and in no file.
"""

from __future__ import annotations

import os
import threading
from typing import BinaryIO

import msgspec

CHUNK_BYTES = 4096


class LauncherGone(Exception):
    """The launcher ended before it had said all that is needed to start."""


class Leash:
    """The pipe from the launcher, read to its end by a thread of its own."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._descriptor = pipe.fileno()
        self.environment = _read_environment(pipe)
        self.is_cut = False
        threading.Thread(target=self._read_on, name="leash", daemon=True).start()

    def _read_on(self) -> None:
        try:
            while os.read(self._descriptor, CHUNK_BYTES):
                pass
        finally:
            self.is_cut = True


def _read_environment(pipe: BinaryIO) -> dict[str, str]:
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise LauncherGone("the launcher is gone, and has not said with which environment the ranks start")
    try:
        return msgspec.json.decode(line, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise LauncherGone(f"the first line on standard input is no JSON object of strings: {error}") from error
