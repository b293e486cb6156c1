"""What happens between steps: ranks agree on stopping, metrics are written, the first step is checked."""

# ruff: noqa: ARG002 - the Trainer decides what a callback is called with

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jobs.agree import agreed_cause
from jobs.fence import Fence, Superseded
from jobs.journal import Journal
from jobs.memory import MemoryMeter
from jobs.stop import StopRequest
from jobs.tracker import Tracker
from jobs.trainer import JobTrainer
from launcher.runs.records import EvalMetrics, TrainMetrics


class Schedule(TrainerCallback):
    """Decides at the end of each step, alike on every rank, whether to stop, evaluate or save.

    stopped_by: what asked for the stop, once all ranks agreed on it. step_rows, step_tokens: of the last step, over
    all ranks. step_time_s: how long it took, without evaluation and saving.
    """

    def __init__(self, trainer: JobTrainer, request: StopRequest, fence: Fence, *, has_eval: bool) -> None:
        self._trainer = trainer
        self._request = request
        self._fence = fence
        self._has_eval = has_eval
        self.stopped_by: str | None = None
        self.num_rows = 0
        self.num_tokens = 0
        self.step_rows = 0
        self.step_tokens = 0
        self.step_time_s = 0.0
        self.total_time_s = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """One all-reduce: who wants to stop, whether all must, and what the step trained on."""
        trainer, train = self._trainer, self._trainer.spec.train
        cause = self._request.cause()
        is_down = state.is_world_process_zero and self._fence.is_down()
        asked, superseded, rows, tokens = trainer.sum_over_ranks(
            [float(cause is not None), float(is_down), float(len(trainer.step_rows)), float(trainer.step_tokens)]
        )
        if superseded:
            raise Superseded(f"a later attempt of this run was started: step {state.global_step} is not kept")
        self._account(int(rows), int(tokens), time.perf_counter() - trainer.step_began_s)
        is_last = state.global_step >= state.max_steps
        if asked and not is_last:
            self.stopped_by = agreed_cause(cause)
            control.should_save = control.should_training_stop = True
            return control
        control.should_evaluate = self._has_eval and (is_last or _is_due(state.global_step, train.eval_every_steps))
        control.should_save = not is_last and _is_due(state.global_step, train.save_every_steps)
        return control

    def _account(self, rows: int, tokens: int, time_s: float) -> None:
        self.step_rows, self.step_tokens, self.step_time_s = rows, tokens, time_s
        self.num_rows += rows
        self.num_tokens += tokens
        self.total_time_s += time_s


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


class Metrics(TrainerCallback):
    """Writes metrics.jsonl and feeds the tracker, on rank 0."""

    def __init__(self, journal: Journal, tracker: Tracker, schedule: Schedule, *, num_eval: int) -> None:
        self._journal = journal
        self._tracker = tracker
        self._schedule = schedule
        self._num_eval = num_eval

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """A line for each logged step, and one for each evaluation."""
        logs = logs or {}
        if "loss" in logs:
            self._write_step(state, logs)
        elif "eval_loss" in logs:
            self._write_evaluation(state, logs["eval_loss"])

    def _write_step(self, state: TrainerState, logs: dict[str, float]) -> None:
        schedule = self._schedule
        record = TrainMetrics(
            time_s=time.time(),
            attempt=self._journal.start.attempt,
            step=state.global_step,
            num_steps=state.max_steps,
            epoch=float(state.epoch or 0.0),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            samples_per_s=schedule.step_rows / schedule.step_time_s,
            tokens_per_s=schedule.step_tokens / schedule.step_time_s,
        )
        self._journal.metrics(record)
        values = {
            "train/loss": record.loss,
            "train/learning_rate": record.learning_rate,
            "train/samples_per_s": record.samples_per_s,
            "train/tokens_per_s": record.tokens_per_s,
        }
        self._tracker.log(values, record.step)

    def _write_evaluation(self, state: TrainerState, loss: float) -> None:
        record = EvalMetrics(
            time_s=time.time(),
            attempt=self._journal.start.attempt,
            step=state.global_step,
            loss=loss,
            num_samples=self._num_eval,
        )
        self._journal.metrics(record)
        self._tracker.log({"eval/loss": loss}, record.step)


class BeforeTraining(TrainerCallback):
    """Calls a function once everything is wrapped and before the first step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Training is about to begin."""
        self._function()


class FirstStep(TrainerCallback):
    """Runs the checks that need a step to have happened: gradients before the first update, states after it."""

    def __init__(self, before_update: Callable[[], None], after_step: Callable[[], None]) -> None:
        self._before_update = before_update
        self._after_step = after_step
        self._seen_update = self._seen_step = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are complete and clipped."""
        if not self._seen_update:
            self._seen_update = True
            self._before_update()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The optimizer has its states."""
        if not self._seen_step:
            self._seen_step = True
            self._after_step()


class Memory(TrainerCallback):
    """Tells the memory meter how many tokens each step was given."""

    def __init__(self, meter: MemoryMeter, trainer: JobTrainer) -> None:
        self._meter = meter
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The optimizer has stepped."""
        self._meter.note_step(state.global_step, self._trainer.step_tokens)
