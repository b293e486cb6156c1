"""What to do about a run that ran out of memory although it was started, in the order in which people try it.

The plan said that it would fit, or nobody asked it to, so nothing is promised here: each change says how much less the
plan then needs, and what that costs in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.planner.estimate import Estimator, micro_batches
from launcher.planner.fit.altering import SHORTEST_SEQUENCE, quantised, shorter_sequences
from launcher.planner.fit.change import Change
from launcher.planner.fit.equivalent import checkpointing, smaller_micro_batch
from launcher.planner.timing import step_time
from launcher.spec import JobSpec, MethodKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change, how many bytes less each rank is then planned to need, and the time for a token beside before."""

    overrides: tuple[str, ...]
    saved_bytes: int
    time_ratio: float
    changes_training: bool
    note: str


def out_of_memory_advice(estimator: Estimator, spec: JobSpec) -> tuple[Advice, ...]:
    """Smaller micro batch, shorter sequences, activation checkpointing, QLoRA: those that are left, and save something.

    spec: the job that ran, its micro batch chosen.
    """
    before = estimator.estimate(spec)
    asked = step_time(before.work).seconds_per_token
    made = []
    for change, changes_training in _usual_order(spec):
        after = estimator.estimate(change.apply(spec))
        saved = before.need.process_bytes - after.need.process_bytes
        if saved > 0:
            ratio = step_time(after.work).seconds_per_token / asked
            made.append(
                Advice(
                    overrides=change.overrides,
                    saved_bytes=saved,
                    time_ratio=ratio,
                    changes_training=changes_training,
                    note=change.note,
                )
            )
    return tuple(made)


def _usual_order(spec: JobSpec) -> Iterator[tuple[Change, bool]]:
    """Each with whether it changes the training."""
    smaller = [size for size in micro_batches(spec) if size <= spec.micro_batch // 2]
    if smaller:
        yield smaller_micro_batch(smaller[-1]), False
    if spec.train.sequence_length // 2 >= SHORTEST_SEQUENCE:
        yield shorter_sequences(spec.train.sequence_length // 2), True
    yield from ((change, False) for change in checkpointing(spec)[-1:])
    if spec.method.kind is not MethodKind.QLORA and spec.device.kind == "cuda":
        yield quantised(), True
