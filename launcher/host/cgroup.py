"""What the control groups leave to this process: memory and cores, under cgroup v1 and v2.

A container or a batch system sets its limits here, and neither /proc/meminfo nor the number of cores shows them.
Source: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
# cgroup v1 writes "no limit" as the largest page-aligned 63-bit number.
V1_NO_LIMIT_BYTES = 2**62


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The lowest memory limit on the way up from this process's control group, or None."""
    limits = (_number(group / name) for group, name in _memory_files(root, "memory.max", "memory.limit_in_bytes"))
    return min((limit for limit in limits if limit is not None and limit < V1_NO_LIMIT_BYTES), default=None)


def memory_left_bytes(root: Path = ROOT) -> int | None:
    """What is left below those limits, counting file cache that the kernel would give up as left; None: no limit."""
    left = []
    for group, name in _memory_files(root, "memory.max", "memory.limit_in_bytes"):
        limit = _number(group / name)
        used = _number(group / ("memory.current" if name == "memory.max" else "memory.usage_in_bytes"))
        if limit is not None and limit < V1_NO_LIMIT_BYTES and used is not None:
            left.append(max(0, limit - used + _reclaimable_bytes(group)))
    return min(left, default=None)


def core_limit(root: Path = ROOT) -> int | None:
    """Whole cores that the CPU quota allows, at least 1, or None where there is no quota."""
    limits = []
    for group in _groups(root, "", "sys/fs/cgroup"):
        limits += _quota(*_words(group / "cpu.max"))
    for group in _groups(root, "cpu", "sys/fs/cgroup/cpu"):
        limits += _quota(*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us"))
    return min(limits, default=None)


def oom_kills(root: Path = ROOT) -> int | None:
    """Processes of this control group that the kernel has killed for want of memory; None where it does not say."""
    for group, name in _memory_files(root, "memory.events", "memory.oom_control"):
        for key, _, count in (line.partition(" ") for line in _lines(group / name)):
            if key == "oom_kill" and count.isdigit():
                return int(count)
    return None


def _quota(quota: str = "max", period: str = "0") -> list[int]:
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:
        return []
    return [max(1, int(quota) // int(period))]


def _memory_files(root: Path, v2_name: str, v1_name: str) -> Iterator[tuple[Path, str]]:
    yield from ((group, v2_name) for group in _groups(root, "", "sys/fs/cgroup"))
    yield from ((group, v1_name) for group in _groups(root, "memory", "sys/fs/cgroup/memory"))


def _groups(root: Path, controller: str, mount: str) -> Iterator[Path]:
    """The directories of this process's control group and of its parents; '' is the one controller of cgroup v2.

    Inside a container the path is often the host's, of which only the mount itself exists.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            relative = Path(path.lstrip("/"))
            yield from (root / mount / parent for parent in (relative, *relative.parents))
            return


def _reclaimable_bytes(group: Path) -> int:
    """inactive_file; under v1 the total over the children, as usage_in_bytes is."""
    found = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
    return int(found.get("total_inactive_file", found.get("inactive_file", "0")))


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _words(path: Path) -> tuple[str, ...]:
    return tuple(word for line in _lines(path) for word in line.split())


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except OSError:
        return ()
