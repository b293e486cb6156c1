"""The buffers in which ZeRO-3 gathers: one parameter comes in its own, several in a flat one, copied out together.

Source: deepspeed 0.19.8 runtime/zero/partition_parameters.py all_gather_coalesced, AllGatherCoalescedHandle.wait. The
first parameter of several that is waited for has all of them copied out; their flat buffer stays until the last has
been waited for, for the coordinator keeps one handle under each parameter (partitioned_param_coordinator.py
__inflight_param_registry).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Fetched = tuple[int, int, int]  # of one parameter its key, its elements and its bytes


@dataclass(slots=True)
class _Flat:
    """Several parameters under way: how many nobody has waited for, and whether they have been copied out."""

    size_bytes: int
    num_waiting: int
    is_copied: bool = False


@dataclass(slots=True)
class Gathered:
    """What is gathered or on its way. numel: its elements; size_bytes: what that takes, buffers included."""

    numel: int = 0
    size_bytes: int = 0
    _keys: set[int] = field(default_factory=set)
    _under_way: dict[int, _Flat] = field(default_factory=dict)

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    def gather(self, parameters: Iterable[Fetched]) -> None:
        """Parameters together, none of which is there."""
        keys, before = [], self.size_bytes
        for key, numel, size in parameters:
            keys.append(key)
            self.numel += numel
            self.size_bytes += size
        self._keys.update(keys)
        if len(keys) > 1:
            flat = _Flat(size_bytes=self.size_bytes - before, num_waiting=len(keys))
            self._under_way.update(dict.fromkeys(keys, flat))

    def fetch(self, parameters: Iterable[Fetched]) -> int:
        """What a module needs: gathered where it is not there, and waited for. Returns the most bytes meanwhile."""
        if missing := [found for found in parameters if found[0] not in self._keys]:
            self.gather(missing)
        highest = self.size_bytes
        for key, _, _ in parameters:
            flat = self._under_way.pop(key, None)
            if flat is None:
                continue
            if not flat.is_copied:
                flat.is_copied = True
                self.size_bytes += flat.size_bytes
                highest = max(highest, self.size_bytes)
            flat.num_waiting -= 1
            if not flat.num_waiting:
                self.size_bytes -= flat.size_bytes
        return highest

    def release(self, parameter: Fetched) -> None:
        """One that a module has used."""
        key, numel, size = parameter
        self._keys.remove(key)
        self.numel -= numel
        self.size_bytes -= size
