"""What is made once and kept: the converted model, the embedded data set, tokenised data.

An entry is a folder or a file whose name holds everything that decides its content. It is built beside its
place under a lock and renamed into it, so that it is either whole or absent, whatever was killed meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """FITLAUNCH_CACHE, or fitlaunch in XDG_CACHE_HOME, or ~/.cache/fitlaunch."""
    chosen = os.environ.get("FITLAUNCH_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fitlaunch"


def build_once(entry: Path, build: Callable[[Path], None]) -> Path:
    """Return `entry`, first having `build` write it (to the path it is given) unless it is there already.

    Of several processes one builds and the others wait for it.
    """
    if entry.exists():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    with locked(entry.parent / f".{entry.name}.lock"):
        if not entry.exists():
            temporary = entry.parent / f".{entry.name}.partial"
            _remove(temporary)  # left by a builder that was killed; nobody else writes it while we hold the lock
            try:
                build(temporary)
                temporary.rename(entry)
            finally:
                _remove(temporary)
    return entry


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file that exists only while somebody holds or awaits it."""
    descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_still(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the open file has its name yet: its holder before us removed it, and such a lock excludes nobody."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
