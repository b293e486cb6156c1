"""Which cells of a sweep may run at the same time on one host. Pure: what a cell needs, what the host has left.

A GPU is given to one cell at a time, and only while nobody else fills it. CPU ranks share: a core for each rank, and
RAM for what the plan says they need at most. A cell that is larger than the host is run alone, as it would be without
a sweep: whether it fits at all was decided by its plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.host.nvml import CardNow
from launcher.planner.types import MemoryPlan
from launcher.spec import ClusterKind

# The driver keeps some of an idle card for itself; more missing than this, and somebody else is on it.
IDLE_PERCENT = 95


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one cell takes. gpu_bytes: free memory that each of its GPUs must have; None for CPU ranks. cards: the only
    GPUs that it can have, where its plan is frozen with them."""

    num_ranks: int
    ram_bytes: int
    gpu_bytes: int | None
    cards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the host offers the whole sweep. most: cells at a time as the user wants it; None is as many as fit."""

    num_cores: int
    ram_bytes: int
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a running cell holds. cards: none for CPU ranks."""

    need: Need
    cards: tuple[str, ...] = ()


def need_of(plan: MemoryPlan) -> Need:
    """What the planned job takes of this host."""
    spec = plan.spec
    if spec.cluster.kind is not ClusterKind.LOCAL:
        return Need(num_ranks=spec.gpus_per_node, ram_bytes=0, gpu_bytes=None)  # nothing of this host
    if spec.device.kind == "cpu":
        rank_bytes = spec.gpus_per_node * plan.process_high_bytes
        ram_bytes = max(rank_bytes, plan.host_ram_bytes_per_node)
        return Need(num_ranks=spec.gpus_per_node, ram_bytes=ram_bytes, gpu_bytes=None)
    assert spec.device.memory_bytes is not None, "a job that is run has a card"
    idle_bytes = spec.device.memory_bytes * IDLE_PERCENT // 100
    gpu_bytes = min(plan.process_high_bytes, idle_bytes)
    return Need(num_ranks=spec.gpus_per_node, ram_bytes=plan.host_ram_bytes_per_node, gpu_bytes=gpu_bytes)


def seat_for(need: Need, room: Room, taken: Sequence[Seat], cards: Sequence[CardNow]) -> Seat | None:
    """The seat for one more cell beside those that are taken, or None while it has to wait.

    cards: the host's GPUs as they are now. A number of cells that the user asked for may crowd the cores, never the
    memory or the GPUs.
    """
    if room.most is not None and len(taken) >= room.most:
        return None
    if need.gpu_bytes is not None:
        return _on_gpus(need, room, taken, cards)
    if not taken:
        return Seat(need=need)
    num_ranks = need.num_ranks + sum(seat.need.num_ranks for seat in taken)
    if room.most is None and num_ranks > room.num_cores:
        return None
    return Seat(need=need) if _ram_suffices(need, room, taken) else None


def _on_gpus(need: Need, room: Room, taken: Sequence[Seat], cards: Sequence[CardNow]) -> Seat | None:
    held = {name for seat in taken for name in seat.cards}
    assert need.gpu_bytes is not None, "only a job on GPUs is given any"
    cards = [card for card in cards if not need.cards or card.name in need.cards]
    free = [card.name for card in cards if card.name not in held and card.free_bytes >= need.gpu_bytes]
    if not taken and len(free) < need.num_ranks:
        # Others are on them. One cell is started as a single job would be, where there is most room.
        free = [card.name for card in sorted(cards, key=lambda card: -card.free_bytes)]
    if len(free) < need.num_ranks or (taken and not _ram_suffices(need, room, taken)):
        return None
    return Seat(need=need, cards=tuple(free[: need.num_ranks]))


def _ram_suffices(need: Need, room: Room, taken: Sequence[Seat]) -> bool:
    return need.ram_bytes + sum(seat.need.ram_bytes for seat in taken) <= room.ram_bytes


def threads_per_cell(need: Need, room: Room, num_waiting: int) -> int:
    """Cores for a cell's ranks when as many such cells run as there is room for: they are to share, not to fight."""
    by_cores = max(1, room.num_cores // max(1, need.num_ranks))
    at_a_time = max(1, min(num_waiting, room.most if room.most is not None else by_cores))
    return max(need.num_ranks, room.num_cores // at_a_time)
