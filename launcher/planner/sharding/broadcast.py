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
from launcher.planner.block import ADAPTER_MARK
from launcher.planner.inventory import Block, Held, State
from launcher.planner.workload import Workload
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


@lru_cache(maxsize=64)
def broadcast_bytes(work: Workload) -> int:
    """The largest two neighbours."""
    pieces = sorted(_pieces(work), key=lambda piece: piece.first)
    sizes = [piece.copied_bytes for piece in pieces]
    return max((one + other for one, other in pairwise((0, *sizes))), default=0)


def _pieces(work: Workload) -> Iterator[Piece]:
    filling: dict[str, Piece] = {}
    for number, (dtype, size_bytes) in enumerate(_tensors(work)):
        piece = filling.setdefault(dtype, Piece(first=number))
        piece.num_tensors += 1
        piece.size_bytes += size_bytes
        if piece.size_bytes >= LIMIT_BYTES:
            yield filling.pop(dtype)
    yield from filling.values()


def _tensors(work: Workload) -> Iterator[tuple[str, int]]:
    """Dtype and bytes of every parameter, in the order in which a model lists them."""
    inventory = work.inventory
    root = inventory.root.parameters
    yield from (_stored(work, p) for p in root if "embed" in p.name)
    for block in inventory.blocks:
        tensors = [_stored(work, p) for p in _in_order(block)]
        for _ in range(block.copies):
            yield from tensors
    yield from (_stored(work, p) for p in root if "embed" not in p.name)


def _in_order(block: Block) -> Iterator[Held]:
    """Adapters stand inside the modules that they adapt."""
    adapters = [p for p in block.parameters if p.state is State.ADAPTER]
    for parameter in block.parameters:
        if parameter.state is not State.ADAPTER:
            yield parameter
            module = parameter.name.removesuffix(".weight")
            yield from (p for p in adapters if p.name.startswith((f"{module}.", f"{module}{ADAPTER_MARK}")))


def _stored(work: Workload, parameter: Held) -> tuple[str, int]:
    if parameter.state is State.QUANTISED:
        packed = parameter.numel if quantisation.is_8bit(work) else quantisation.packed_bytes(parameter.numel)
        return "quantised", packed
    dtype = work.stored_dtype(parameter.state)
    return dtype, parameter.numel * dtype.num_bytes
