"""What ranks leave behind, where only some of it matters: the rest is zero, one or nothing. Needs no torch."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from launcher.runs.records import Finished, Started, TrainMetrics

STARTED = Started(
    attempt=1, time_s=1.0, world_size=2, device="cpu", wrapper="none", resumed_from_step=None, num_parameters=1,
    num_trainable_parameters=1, num_train_samples=1, num_eval_samples=1, num_truncated_samples=0, versions={},
    checks={},
)  # fmt: skip
STEP = TrainMetrics(
    time_s=1.0, attempt=1, step=1, num_steps=4, epoch=0.0, loss=1.0, learning_rate=1e-4, grad_norm=None,
    samples_per_s=1.0, tokens_per_s=1.0,
)  # fmt: skip
FINISHED = Finished(
    attempt=1, time_s=1.0, num_steps=4, train_loss=1.0, eval_loss_before=None, eval_loss_after=None,
    samples_per_s=1.0, tokens_per_s=1.0, train_time_s=1.0, result="result",
)  # fmt: skip


def started(attempt: int, **changes: Any) -> Started:
    """Now."""
    return dataclasses.replace(STARTED, attempt=attempt, time_s=time.time(), **changes)


def stepped(attempt: int, step: int, num_steps: int, **changes: Any) -> TrainMetrics:
    """A step, now."""
    return dataclasses.replace(STEP, attempt=attempt, time_s=time.time(), step=step, num_steps=num_steps, **changes)


def finished(attempt: int, num_steps: int, **changes: Any) -> Finished:
    """All steps done, now."""
    return dataclasses.replace(FINISHED, attempt=attempt, time_s=time.time(), num_steps=num_steps, **changes)
