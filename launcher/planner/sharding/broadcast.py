"""What DDP sends when it is made: rank 0's weights in flat pieces, two of them at a time.

Source: torch 2.13 csrc/distributed/c10d/comm.cpp broadcast_coalesced, reducer.cpp compute_bucket_assignment_by_size: a
piece takes tensors of one dtype until it has reached its limit, so that the last can be larger than that; pieces go in
the order of their first tensors. A piece of one tensor is sent as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from launcher.planner import quantisation
from launcher.planner.inventory import Held, Inventory, State
from launcher.planner.sharding.order import groups
from launcher.planner.workload import Workload
from launcher.spec import Dtype
from launcher.units import MIB

LIMIT_BYTES = 250 * MIB  # torch 2.13 nn/parallel/distributed.py broadcast_bucket_size


@dataclass(slots=True)
class Piece:
    """Tensors that are sent together. first: the place of the first of them among all."""

    first: int
    num_tensors: int = 0
    size_bytes: int = 0

    @property
    def copied_bytes(self) -> int:
        """Of the flat copy."""
        return self.size_bytes if self.num_tensors > 1 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtypes:
    """What a model's parameters are stored in."""

    trained: Dtype
    frozen: Dtype
    is_8bit: bool

    def stored(self, parameter: Held) -> tuple[str, int]:
        """Dtype and bytes of one."""
        if parameter.state is State.QUANTISED:
            return "quantised", parameter.numel if self.is_8bit else quantisation.packed_bytes(parameter.numel)
        dtype = self.trained if parameter.state.is_trained else self.frozen
        return dtype, parameter.numel * dtype.num_bytes


def broadcast_bytes(work: Workload) -> int:
    """The largest two neighbours."""
    frozen = work.dtypes.frozen or work.dtypes.trained
    dtypes = Dtypes(trained=work.dtypes.trained, frozen=frozen, is_8bit=quantisation.is_8bit(work))
    return _largest_pair(work.inventory, dtypes)


@lru_cache(maxsize=64)
def _largest_pair(inventory: Inventory, dtypes: Dtypes) -> int:
    pieces = sorted(_pieces(inventory, dtypes), key=lambda piece: piece.first)
    sizes = [piece.copied_bytes for piece in pieces]
    return max((one + other for one, other in pairwise((0, *sizes))), default=0)


def _pieces(inventory: Inventory, dtypes: Dtypes) -> Iterator[Piece]:
    filling: dict[str, Piece] = {}
    for number, (dtype, size_bytes) in enumerate(_tensors(inventory, dtypes)):
        piece = filling.setdefault(dtype, Piece(first=number))
        piece.num_tensors += 1
        piece.size_bytes += size_bytes
        if piece.size_bytes >= LIMIT_BYTES:
            yield filling.pop(dtype)
    yield from filling.values()


def _tensors(inventory: Inventory, dtypes: Dtypes) -> Iterator[tuple[str, int]]:
    """Dtype and bytes of every parameter, in the order in which a model lists them."""
    for copies, parameters in groups(inventory):
        tensors = [dtypes.stored(p) for p in parameters]
        for _ in range(copies):
            yield from tensors
