"""The smallest card, and how many of them, that would hold a job."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from launcher.planner.estimate import Estimator
from launcher.precision import COMPUTE
from launcher.spec import Attention, DeviceSpec, Dtype, JobSpec, ShardKind

AMPERE = (8, 0)
GPUS_PER_NODE = (1, 2, 4, 8)


def smallest_card(estimator: Estimator, spec: JobSpec, cards: Sequence[DeviceSpec]) -> str | None:
    """The card with the least memory on which the job fits as it is, else with more of them, as 'a100-80g x 2'.

    More cards help only where the sharding splits something.
    """
    found = (smallest_card_of(estimator, sized, cards) for sized in _sizes(spec))
    return next((card for card in found if card is not None), None)


def smallest_card_of(estimator: Estimator, spec: JobSpec, cards: Sequence[DeviceSpec]) -> str | None:
    """The card with the least memory on which a job fits as it is, as 'a100-80g x 2' where it has two ranks."""
    usable = sorted((card for card in cards if can_compute(card, spec)), key=lambda card: card.memory_bytes or 0)
    least_bytes = 0
    for card in usable:
        # What lies outside the allocator differs a little between cards: not by as much as an interval is wide.
        if (card.memory_bytes or 0) < least_bytes:
            continue
        found = estimator.best(dataclasses.replace(spec, device=card))
        if found.fits:
            return f"{card.name} x {spec.world_size}"
        least_bytes = found.need.low_bytes
    return None


def can_compute(card: DeviceSpec, spec: JobSpec) -> bool:
    """Whether a card has the arithmetic that the job asks for: bf16 and flash-attention 2 came with Ampere."""
    if card.memory_bytes is None or card.kind != "cuda":
        return False
    needs_ampere = (
        COMPUTE[spec.train.precision] is Dtype.BFLOAT16 or spec.train.attention is Attention.FLASH_ATTENTION_2
    )
    return not needs_ampere or card.compute_capability is None or card.compute_capability >= AMPERE


def _sizes(spec: JobSpec) -> Iterator[JobSpec]:
    """The job as it is, then on more GPUs a node."""
    yield spec
    if spec.shard.kind is not ShardKind.DDP:
        yield from with_more_gpus(spec)


def with_more_gpus(spec: JobSpec) -> Iterator[JobSpec]:
    """The job on every usual larger number of GPUs a node that divides its global batch."""
    micro_batch = spec.train.micro_batch or 1
    for gpus in GPUS_PER_NODE:
        if gpus > spec.gpus_per_node and spec.train.global_batch % (gpus * spec.nodes * micro_batch) == 0:
            yield dataclasses.replace(spec, gpus_per_node=gpus)
