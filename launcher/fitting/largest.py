"""The biggest micro batch and the longest sequence that a card holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from launcher.planner.estimate import Estimate, Estimator
from launcher.spec import JobSpec
from launcher.units import round_up

MOST_SEQUENCES = 1024
SEQUENCE_STEP = 64


def largest_within(need: Callable[[int], int], limit: int, least: int, most: int) -> int | None:
    """The largest number from `least` to `most` whose need stays within a limit; None when that of `least` does not.

    A need grows with its number, nearly in a straight line, so the next guess lies on the line between the bounds;
    every other guess is their middle, for needs that bend.
    """
    low, high = least, most
    at_low = need(low)
    if at_low > limit:
        return None
    at_high = need(high)
    if at_high <= limit:
        return most
    straight = True
    while high - low > 1:
        guess = low + (limit - at_low) * (high - low) // (at_high - at_low) if straight else (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        straight = not straight or high - low < 4
        tried = need(guess)
        if tried <= limit:
            low, at_low = guess, tried
        else:
            high, at_high = guess, tried
    return low


def largest_micro_batch(estimator: Estimator, spec: JobSpec) -> int | None:
    """The biggest micro batch that fits a job's card, whatever the global batch, which grows where it has to."""
    return _largest(estimator, spec, lambda size: with_room_for(spec, size), 1, MOST_SEQUENCES)


def with_room_for(spec: JobSpec, micro_batch: int) -> JobSpec:
    """The job with a micro batch, its global batch the next multiple that holds it."""
    global_batch = round_up(spec.train.global_batch, micro_batch * spec.world_size)
    train = dataclasses.replace(spec.train, micro_batch=micro_batch, global_batch=global_batch)
    return dataclasses.replace(spec, train=train)


def longest_sequence(estimator: Estimator, spec: JobSpec) -> int | None:
    """The longest sequence that fits, in steps of 64 tokens, up to what the model was made for; the micro batch is the
    one asked for, or 1."""

    def of_length(steps: int) -> JobSpec:
        length = steps * SEQUENCE_STEP
        train = dataclasses.replace(spec.train, sequence_length=length, micro_batch=spec.train.micro_batch or 1)
        return dataclasses.replace(spec, train=train)

    most = estimator.shape.max_position_embeddings // SEQUENCE_STEP
    steps = _largest(estimator, spec, of_length, 1, most) if most else None
    return None if steps is None else steps * SEQUENCE_STEP


def _largest(
    estimator: Estimator, spec: JobSpec, changed: Callable[[int], JobSpec], least: int, most: int
) -> int | None:
    capacity_bytes = spec.device.memory_bytes
    assert capacity_bytes is not None, "no card is named"
    tried: dict[int, Estimate] = {}

    def need(number: int) -> int:
        tried[number] = estimator.estimate(changed(number))
        return tried[number].need.high_bytes

    found = largest_within(need, capacity_bytes, least, most)
    assert found is None or tried[found].fits
    return found
