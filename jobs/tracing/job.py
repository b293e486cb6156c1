"""jobs.job.Job on fake tensors, from loading to saving the result. What reads or writes files, or needs the other
ranks' data, is replaced; nothing else is.

The job's own checks run too: that the model really is wrapped, sharded and in the planned dtypes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.utils.data
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import SequentialSampler
from transformers.trainer_utils import TrainOutput

from jobs import result
from jobs.collate import Collator
from jobs.data import Counts, Data
from jobs.job import Job
from jobs.journal import Journal
from jobs.memory import MemoryMeter
from jobs.model import load_model
from jobs.prompt import IGNORED
from jobs.start import Start
from jobs.stop import StopRequest
from jobs.tracing import categories, quantised, zero
from jobs.tracing.huggingface import read_shapes
from jobs.tracing.recorder import Recorder
from jobs.tracing.saving import Files
from jobs.tracing.target import Target
from jobs.trainer import NUM_TOKENS, ROW, JobTrainer
from launcher.planner.types import Phase, TermKind
from launcher.runs.layout import RunFolder
from launcher.runs.records import RankMeasurement
from launcher.spec import JobSpec, ShardKind, TrackerKind, TrackerSpec

# One step makes the optimizer's states and the libraries' buffers, the next has them from its beginning.
NUM_STEPS = 2
# ZeRO-3 prefetches by an order that it records in one backward pass after it has found the evaluation's to be no
# training step's (partitioned_param_coordinator.py trace_prologue, reset_step).
NUM_STEPS_ZERO3 = 3
# Gradients of an earlier micro batch are alive in every later one alike.
MOST_MICRO_BATCHES = 2


def num_steps(spec: JobSpec) -> int:
    """Optimizer steps until one is like all that follow, and that one."""
    return NUM_STEPS_ZERO3 if spec.shard.kind is ShardKind.ZERO3 else NUM_STEPS


def traced_spec(spec: JobSpec) -> JobSpec:
    """The job as it is traced: two steps of at most two micro batches, and nothing kept."""
    micro_batches = min(spec.gradient_accumulation, MOST_MICRO_BATCHES)
    train = dataclasses.replace(
        spec.train,
        max_steps=num_steps(spec),
        global_batch=spec.micro_batch * spec.world_size * micro_batches,
        eval_every_steps=None,
        save_every_steps=None,
        dataloader_workers=0,
    )
    return dataclasses.replace(spec, train=train, tracker=TrackerSpec(kind=TrackerKind.NONE, project=None))


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Samples of equal length: the longest that the job takes. Packed ones have the positions of several."""

    column_names = ("input_ids", "labels")

    def __init__(self, num_rows: int, *, length: int, packed: bool) -> None:
        self._num_rows = num_rows
        self._row: dict[str, list[int]] = {"input_ids": [1] * length, "labels": [1] * length}
        if packed:
            half = length // 2
            self._row["position_ids"] = [*range(half), *range(length - half)]

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._num_rows:
            raise IndexError(index)
        return dict(self._row)


class TracedTrainer(JobTrainer):
    """The job's trainer; batches become fake, and sums over ranks are this rank's times their number."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # The order of rows decides nothing here, and a shuffled one is drawn from a tensor.
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # type: ignore[arg-type]

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """The same collective, whose result nobody could know."""
        super().sum_over_ranks(values)
        return [value * self.args.world_size for value in values]


class FakeBatches:
    """A collator whose batches are fake tensors, but for the rows' numbers and counts, which the job reads."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        with _disable_current_modes():
            batch = self._collator(rows)
        return {
            name: tensor if name in (ROW, NUM_TOKENS) else torch.empty_like(tensor) for name, tensor in batch.items()
        }


class TracedJob(Job):
    """One rank's job until its result is saved, recorded."""

    trainer_class = TracedTrainer

    def __init__(self, *, target: Target, run: RunFolder, recorder: Recorder, say: Callable[[str], None]) -> None:
        start = Start(
            attempt=1,
            plan_hash="",
            launcher=None,
            rank=target.rank,
            local_rank=target.local_rank,
            world_size=target.world_size,
        )
        super().__init__(
            spec=traced_spec(target.spec),
            run=run,
            start=start,
            journal=Journal(run=run, start=start),
            request=StopRequest(run.stop_file(start.attempt)),
        )
        self.recorder = recorder
        self.say = say
        self.trainer: JobTrainer | None = None

    def make_meter(self) -> MemoryMeter:
        """One that marks phases in the recording instead of measuring them."""
        return Marks(self)

    def categorise(self) -> None:
        """Note what the trainer holds now: weights, gradients, optimizer states."""
        if self.trainer is None:
            return
        parameters = list(self.trainer.model_wrapped.parameters())
        zero.note(self.recorder, self.trainer.model_wrapped, self.spec)
        categories.note_parameters(self.recorder, parameters, self.spec)
        self.recorder.categorise(quantised.constants(self.trainer.model_wrapped), TermKind.WEIGHTS)
        categories.note_gradients(self.recorder, parameters)
        if self.trainer.optimizer is not None:
            categories.note_optimizer_states(self.recorder, self.trainer.optimizer)

    def choose_checkpoint(self) -> Path | None:
        """Every traced job begins anew."""
        self.resumed_from_step = None
        return None

    def load_data(self) -> None:
        """Rows of the full sequence length, enough for every step of every rank."""
        train = self.spec.train
        rows = Rows(train.global_batch * num_steps(self.spec), length=train.sequence_length, packed=train.packing)
        held_out = self._held_out()
        self.tokenizer = None
        flatten = train.packing and train.attention.value == "flash_attention_2"
        self.data = Data(
            train=rows,  # type: ignore[arg-type]
            eval=held_out,  # type: ignore[arg-type]
            collator=Collator(pad_id=IGNORED, max_length=train.sequence_length, flatten=flatten),
            counts=Counts(
                num_train=len(rows),
                num_eval=0 if held_out is None else len(held_out),
                num_truncated=0,
                num_dropped=0,
                num_train_tokens=len(rows) * train.sequence_length,
                num_learned_tokens=len(rows) * train.sequence_length,
            ),
            has_template=True,
        )

    def _held_out(self) -> Rows | None:
        """One batch a rank. ZeRO-3 records the order of modules in the first pass, which is an evaluation's."""
        spec = self.spec
        if spec.data.eval_path is None and spec.data.eval_fraction == 0:
            return None
        return Rows(spec.micro_batch * spec.world_size, length=spec.train.sequence_length, packed=spec.train.packing)

    def load_model(self) -> Any:
        """The model with weights that have a shape and no data."""
        read = functools.partial(read_shapes, mapped=self.device.type == "cpu")
        return load_model(self.spec, device=self.device, read=read)

    def build_trainer(self, *args: Any, **kwargs: Any) -> JobTrainer:
        """The trainer, its batches fake."""
        trainer = super().build_trainer(*args, **kwargs)
        trainer.data_collator = FakeBatches(trainer.data_collator)
        trainer.plain_collator = FakeBatches(trainer.plain_collator)
        return trainer

    def check_rows(self) -> None:
        """Which rows the other ranks took cannot be asked of them."""

    def write_started(self) -> None:
        """There is no run to keep a record of."""

    def close(self, output: TrainOutput) -> None:
        """Save the result, and nothing more."""
        del output
        self.save_result()

    def save_result(self) -> None:
        """Gather and copy what is saved, and look at it again as the job does."""
        assert self.trainer is not None
        self.phases.enter(Phase.SAVE)
        files = Files()
        result.save(self.trainer, self.run.result, self.spec)
        files.open_each()


class Marks(MemoryMeter):
    """Told of phases as what measures a run is; marks them in the recording."""

    def __init__(self, job: TracedJob) -> None:
        super().__init__()
        self._job = job

    def _begin(self, phase: Phase, step: int) -> None:
        # What the last phase has left is what it is now. Not from within the forward pass: ZeRO-3 takes whoever lists
        # parameters there for a module that uses them all, and gathers the whole model for it ever after
        # (parameter_offload.py ZeROOrderedDict).
        if phase is not Phase.LOSS:
            self._job.categorise()
        self._job.recorder.mark(phase, step)
        self._job.say(f"step {step} of {num_steps(self._job.spec)}, {phase.value}" if step else phase.value)

    def measurement(self, rank: int) -> RankMeasurement:
        """Never asked for: a traced job keeps no records."""
        raise AssertionError(rank)
