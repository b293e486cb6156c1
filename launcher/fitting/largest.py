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
    """The largest number from `least` to `most` whose need stays within a limit; None when that of `least` does not."""
    at_least = need(least)
    return None if at_least > limit else largest_from(need, limit, least, at_least, most)


def largest_from(need: Callable[[int], int], limit: int, low: int, at_low: int, most: int) -> int:
    """The largest number up to `most` whose need stays within a limit, that of `low` being known to.

    A need grows with its number, nearly in a straight line, so the next guess lies on the line between the bounds;
    every third guess is their middle, for needs that bend.
    """
    high, at_high = most, need(most)
    if at_high <= limit:
        return most
    num_guesses = 0
    while high - low > 1:
        num_guesses += 1
        on_line = low + (limit - at_low) * (high - low) // (at_high - at_low)
        guess = min(max(on_line if num_guesses % 3 else (low + high) // 2, low + 1), high - 1)
        tried = need(guess)
        if tried <= limit:
            low, at_low = guess, tried
        else:
            high, at_high = guess, tried
    return low


def largest_micro_batch(estimator: Estimator, fitting: Estimate) -> int:
    """The biggest micro batch with which a job that fits still does; its global batch grows where it has to."""
    spec = fitting.spec
    return _largest(estimator, fitting, lambda size: with_room_for(spec, size), spec.micro_batch, MOST_SEQUENCES)


def with_room_for(spec: JobSpec, micro_batch: int) -> JobSpec:
    """The job with a micro batch, its global batch the next multiple that holds it."""
    global_batch = round_up(spec.train.global_batch, micro_batch * spec.world_size)
    train = dataclasses.replace(spec.train, micro_batch=micro_batch, global_batch=global_batch)
    return dataclasses.replace(spec, train=train)


def longest_sequence(estimator: Estimator, fitting: Estimate) -> int:
    """The longest sequence with which a job that fits still does: the one it has, or one in steps of 64 tokens, up to
    what the model was made for."""
    spec = fitting.spec
    asked, most = spec.train.sequence_length, estimator.shape.max_position_embeddings // SEQUENCE_STEP
    if asked > most * SEQUENCE_STEP:
        return asked

    def of_length(steps: int) -> JobSpec:
        length = max(steps * SEQUENCE_STEP, asked)
        return dataclasses.replace(spec, train=dataclasses.replace(spec.train, sequence_length=length))

    steps = _largest(estimator, fitting, of_length, asked // SEQUENCE_STEP, most)
    return max(steps * SEQUENCE_STEP, asked)


def _largest(estimator: Estimator, fitting: Estimate, changed: Callable[[int], JobSpec], least: int, most: int) -> int:
    """The largest number whose job fits; that of `least` is the job that is known to."""
    capacity_bytes = fitting.spec.device.memory_bytes
    assert capacity_bytes is not None, "no card is named"

    def need(number: int) -> int:
        return estimator.estimate(changed(number)).need.high_bytes

    return largest_from(need, capacity_bytes, least, fitting.need.high_bytes, max(least, most))
