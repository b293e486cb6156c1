"""transformers' Trainer with what this job needs beside it: exact evaluation, counted rows, complete checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from jobs import checkpoint
from jobs.agree import sum_over_ranks
from jobs.fence import Fence
from jobs.phases import Phases
from jobs.sharding import set_fsdp_precision
from jobs.stop import stop_signals_held_back
from launcher.planner.types import Phase
from launcher.precision import is_deepspeed
from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec, MethodKind, ShardKind

ROW = "row"
NUM_TOKENS = "num_tokens"
IGNORED_LABEL = -100


class Numbered(Dataset):  # type: ignore[type-arg]
    """A dataset whose rows know their number, so that it can be shown which rows a rank was given."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._rows[index], ROW: index}


class NumberedCollator:
    """A collator that keeps the rows' numbers, and how many tokens they have, beside the batch."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collator = collator

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        plain = [{key: value for key, value in feature.items() if key != ROW} for feature in features]
        batch = dict(self._collator(plain))
        num_tokens = sum(len(feature["input_ids"]) for feature in features)
        rows = torch.tensor([feature[ROW] for feature in features])
        return {**batch, ROW: rows, NUM_TOKENS: torch.tensor([num_tokens])}


class JobTrainer(Trainer):
    """One job's trainer.

    step_rows, step_tokens: what this rank was given for the current optimizer step. step_began_s: when it was.
    saved_dtype: the dtype that a whole model is saved in, None to save it as it is held.
    """

    def __init__(
        self,
        *,
        spec: JobSpec,
        run: RunFolder,
        phases: Phases,
        fence: Fence,
        on_checkpoint: Callable[[Path], None],
        train_dataset: Sized,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        **kwargs: Any,
    ) -> None:
        self.spec = spec
        self.run_folder = run
        self.phases = phases
        self.fence = fence
        self.on_checkpoint = on_checkpoint
        self.step_rows: list[int] = []
        self.step_tokens = 0
        self.step_began_s = 0.0
        self.saved_dtype: torch.dtype | None = None
        self.plain_collator = data_collator
        super().__init__(train_dataset=Numbered(train_dataset), data_collator=NumberedCollator(data_collator), **kwargs)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)
        if self.spec.shard.gradient_as_bucket_view:
            arguments["kwargs_handlers"][0].gradient_as_bucket_view = True
        if self.spec.shard.kind is ShardKind.FSDP:
            set_fsdp_precision(arguments["fsdp_plugin"], self.spec)
        return arguments

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self.phases.watch_model(self.accelerator.unwrap_model(self.model_wrapped))
        if is_deepspeed(self.spec.shard.kind):
            self.phases.watch_engine(self.model_wrapped)
        return prepared

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one micro batch."""
        self.phases.enter(Phase.FORWARD, self.state.global_step + 1)
        return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass; backward begins where it returns."""
        loss = super().compute_loss(*args, **kwargs)
        self.phases.enter(Phase.BACKWARD)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        self.phases.enter(Phase.OPTIMIZER)  # its temporaries live where the gradients are complete
        return super()._clip_grad_norm(model)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """An evaluation over the held-out rows."""
        self.phases.enter(Phase.EVALUATION, self.state.global_step)
        return super().evaluate(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The step's micro batches, their rows noted and taken out."""
        self.step_began_s = time.perf_counter()
        with stop_signals_held_back():  # an epoch's first batch forks the processes that load its data
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_rows = [row for batch in batches for row in batch.pop(ROW).tolist()]
        self.step_tokens = sum(int(batch.pop(NUM_TOKENS)) for batch in batches)
        return batches, num_items

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:  # type: ignore[type-arg]
        """This rank's share of the held-out rows. All ranks take equally many batches, for each is a collective."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        share = _share(rows, rank=self.args.process_index, world_size=self.args.world_size)
        return DataLoader(share, batch_size=self.args.eval_batch_size, collate_fn=self.plain_collator)  # type: ignore[arg-type]

    def evaluation_loop(
        self,
        dataloader: DataLoader,  # type: ignore[type-arg]
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean loss over all held-out tokens, the same for any number of ranks and any micro batch.

        The Trainer's own loop averages the means of batches and repeats rows to fill the last one.
        """
        del description, prediction_loss_only, ignore_keys
        self.model.eval()
        loss_sum, num_tokens = 0.0, 0
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                # Divided by one item, the model's loss is the sum over its tokens.
                loss = self.model(**inputs, num_items_in_batch=1)["loss"]
            loss_sum += float(loss)
            num_tokens += int(inputs["labels"][..., 1:].ne(IGNORED_LABEL).sum())
        loss_sum, total = self.sum_over_ranks([loss_sum, float(num_tokens)])
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]
            label_ids=None,
            metrics={f"{metric_key_prefix}_loss": loss_sum / total},
            num_samples=len(self.eval_dataset),  # type: ignore[arg-type]
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.phases.enter(Phase.SAVE)
        folder = self.run_folder.checkpoints / f"{checkpoint.PREFIX}{self.state.global_step}"
        if self.is_world_process_zero():
            self.fence.check()
            if folder.exists():
                checkpoint.discard(folder)  # what an interrupted attempt left behind
        self.barrier()
        super()._save_checkpoint(model, trial)
        self.barrier()
        if self.is_world_process_zero():
            self.on_checkpoint(folder)
        self.barrier()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model. Under ZeRO-2 every rank has it whole, and rank 0 alone copies what it writes: accelerate 1.15
        (get_state_dict) would copy all of it, the frozen weights too, on every rank."""
        if self.spec.shard.kind is not ShardKind.ZERO2:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            # The engine's parameters are views of one flat buffer, which torch.save would write whole for each of them.
            state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _written(model, self.spec).items()}
            self._save(output_dir, state_dict=without_tied_copies(state, model.all_tied_weights_keys))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.saved_dtype is None or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        state = self.model.state_dict() if state_dict is None else state_dict
        state = without_tied_copies(state, self.accelerator.unwrap_model(self.model).all_tied_weights_keys)
        # On the host: beside the weights and the optimizer's states the device may have no room for a copy.
        super()._save(output_dir, {name: _cast(tensor.cpu(), self.saved_dtype) for name, tensor in state.items()})

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """The sum of each value over all ranks."""
        return sum_over_ranks(values, self.args.device)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if dist.is_initialized():
            dist.barrier()


def _written(model: Any, spec: JobSpec) -> dict[str, torch.Tensor]:
    """What is saved of a model that this rank has whole: all of it, or what is trained beside a frozen base."""
    if spec.method.kind is MethodKind.FULL:
        return dict(model.state_dict())
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def without_tied_copies(state: dict[str, torch.Tensor], tied: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """A state dict without the second names of tied weights (`tied`: second name -> first), as transformers saves it.

    Gathered or cast, the two are separate tensors, and both would be written. Where they differ the tie was lost.
    """
    for second, first in tied.items():
        if second in state and first in state and not torch.equal(state[second], state[first]):
            raise RuntimeError(f"{second} and {first} are tied, but training made them differ")
    return {name: tensor for name, tensor in state.items() if tied.get(name) not in state}


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _share(rows: Any, *, rank: int, world_size: int) -> list[dict[str, Any]]:
    """Every world_size-th row, filled up with a row whose labels do not count."""
    mine = [rows[index] for index in range(rank, len(rows), world_size)]
    while len(mine) < -(-len(rows) // world_size):
        mine.append({**rows[0], "labels": [IGNORED_LABEL] * len(rows[0]["labels"])})
    return mine
