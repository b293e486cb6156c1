"""One launcher for a run at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import SubmitError


def _holds_path(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one under that name; its last holder removes it while holding it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock, or raise SubmitError at once.

    The kernel lets go of it when the process ends, however it ends: a lock file left behind by a killed
    launcher blocks nobody.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SubmitError(f"{what} cannot be locked: {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SubmitError(f"{what} is being followed by another launcher: wait for it, or cancel it") from None
        if _holds_path(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
