"""Whether nodes can see what a job reads and writes, as far as its paths tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.spec import JobSpec

MOUNTS = Path("/proc/self/mounts")
# Each host has its own of these, whatever is mounted there.
OWN_FOLDERS = tuple(Path(name) for name in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/local", "/scratch/local"))  # noqa: S108
OWN_KINDS = frozenset({"tmpfs", "ramfs", "devtmpfs", "overlay"})


def doubtful_paths(spec: JobSpec, runs_dir: Path, mounts: str) -> tuple[str, ...]:
    """A sentence for every path of the job that other hosts hardly share. mounts: the text of /proc/self/mounts.

    A doubt and no more: a node may be this very host. Whether a node sees them is checked on it, before its ranks
    start.
    """
    named = (
        ("runs_dir", runs_dir),
        ("model.path", spec.model.path),
        ("data.path", spec.data.path),
        ("data.eval_path", spec.data.eval_path),
    )
    return tuple(
        f"{field}={path} is hardly on every node: it is {why}"
        for field, path in named
        if path is not None
        for why in _reasons(Path(path), mounts)
    )


def _reasons(path: Path, mounts: str) -> Iterator[str]:
    own = next((folder for folder in OWN_FOLDERS if path.is_relative_to(folder)), None)
    kind = _kind(path, mounts)
    if own is not None:
        yield f"below {own}, which each host has of its own"
    elif kind in OWN_KINDS:
        yield f"on a {kind} of this host"


def _kind(path: Path, mounts: str) -> str:
    """The kind of file system that a path is on: of the longest mount point above it, the last one mounted."""
    best, found = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), fields[2]
    return found
