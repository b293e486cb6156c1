"""One rank of one job, from loading to the result."""

from __future__ import annotations

import dataclasses
import gc
import os
import textwrap
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput

from jobs import checkpoint, checks, result
from jobs.arguments import training_arguments
from jobs.callbacks import BeforeTraining, FirstStep, Memory, Metrics, Schedule
from jobs.data import Data, first_example, load_data
from jobs.fence import Fence
from jobs.journal import Journal
from jobs.memory import MemoryMeter, memory_meter, write_detailed
from jobs.model import load_model, load_tokenizer
from jobs.phases import Phases
from jobs.sharding import accelerator_context, prepare_libraries
from jobs.start import Start
from jobs.stop import StopRequest
from jobs.tracker import Tracker, open_tracker
from jobs.trainer import JobTrainer
from jobs.versions import installed_versions
from launcher.planner.types import Phase
from launcher.runs.layout import RunFolder
from launcher.runs.records import Finished, Started, Stopped, write_atomically, write_record
from launcher.spec import JobSpec

RECORD_EVERYTHING = "FITLAUNCH_RECORD_MEMORY"  # set: a CPU rank records its memory from beginning to end
FIRST_EXAMPLE_CHARACTERS = 240  # on the screen; the file has it whole


class Job:
    """The parts of a job and the order they go in. Every rank does the same; rank 0 also writes the records.

    jobs.tracing.job runs the same parts on fake tensors, and replaces only what reads files or needs other ranks.
    """

    trainer_class: type[JobTrainer] = JobTrainer

    def __init__(self, *, spec: JobSpec, run: RunFolder, start: Start, journal: Journal, request: StopRequest) -> None:
        self.spec = spec
        self.run = run
        self.start = start
        self.journal = journal
        self.request = request
        self.fence = Fence(run=run, attempt=start.attempt)
        self.phases = Phases()
        self.found: dict[str, Any] = {}

    def run_to_end(self) -> None:
        """Load, check, train, and leave a result or a checkpoint."""
        prepare_libraries(self.spec)
        # Before the model: it sets up the process group, and ZeRO-3 loads through the state it leaves.
        arguments = TrainingArguments(
            **training_arguments(self.spec, output_dir=self.run.checkpoints, deepspeed_config=self.run.deepspeed)
        )
        self.device = arguments.device
        self.meter = self.make_meter()
        self.phases.listen(self.meter.begin)
        resume_from = self.choose_checkpoint()
        self.journal.stage("load data")
        self.load_data()
        self.journal.stage("load model")
        self.phases.enter(Phase.LOAD)
        model = self.load_model()
        self.phases.enter(Phase.WRAP)
        self.trainer = self.build_trainer(model, arguments, self.data, first_start=resume_from is None)
        del model
        output = self.train(resume_from)
        self.close(output)

    def make_meter(self) -> MemoryMeter:
        """What measures the memory of this rank."""
        return memory_meter(self.device, everything=RECORD_EVERYTHING in os.environ)

    def load_data(self) -> None:
        """The tokenizer, and the samples it made."""
        self.tokenizer = load_tokenizer(self.spec)
        self.data = load_data(self.spec, self.tokenizer)
        self.show_first_example()

    def load_model(self) -> Any:
        """The model, ready for the Trainer."""
        return load_model(self.spec, device=self.device)

    def show_first_example(self) -> None:
        """Leave the first sample with its mask where it can be seen: a wrong mask trains with exit code 0."""
        if not self.start.is_first_rank:
            return
        if not self.data.has_template:
            self.journal.stage("no chat template", "the rows are asked in the alpaca form")
        text = first_example(self.data, self.tokenizer)
        write_atomically(self.run.first_example, text + "\n")
        self.journal.stage("first example", textwrap.shorten(text, FIRST_EXAMPLE_CHARACTERS, placeholder=" ..."))

    def choose_checkpoint(self) -> Path | None:
        """The checkpoint to go on from, chosen and verified by rank 0 for all; None to begin anew."""
        choice: list[Any] = [None, None]
        if self.start.is_first_rank:
            try:
                choice[0] = self._newest_checkpoint()
            except checkpoint.ResumeRefused as error:
                choice[1] = str(error)
        if dist.is_initialized():
            dist.broadcast_object_list(choice, src=0)
        if choice[1] is not None:
            raise checkpoint.ResumeRefused(choice[1])
        self.resumed_from_step = None if choice[0] is None else checkpoint.step_of(choice[0])
        return choice[0]

    def _newest_checkpoint(self) -> Path | None:
        found = checkpoint.find_newest(self.run)
        for reason in found.passed_over:
            self.journal.stage("pass over checkpoint", reason)
        if found.folder is None or found.manifest is None:
            return None
        checkpoint.require_resumable(
            found.folder, found.manifest, run_id=self.run.root.name, spec=self.spec, user=os.getuid()
        )
        self.journal.stage("resume", f"from {found.folder.name}")
        return found.folder

    def build_trainer(self, model: Any, arguments: TrainingArguments, data: Data, *, first_start: bool) -> JobTrainer:
        """The trainer with the job's callbacks; it evaluates before the first step of a first start only."""
        arguments.eval_on_start = first_start and data.eval is not None
        with accelerator_context(self.spec):
            trainer = self.trainer_class(
                spec=self.spec,
                run=self.run,
                phases=self.phases,
                fence=self.fence,
                on_checkpoint=self.complete_checkpoint,
                model=model,
                args=arguments,
                train_dataset=data.train,
                eval_dataset=data.eval,
                data_collator=data.collator,
                processing_class=self.tokenizer,
            )
        trainer.remove_callback(transformers.PrinterCallback)
        self.tracker: Tracker = open_tracker(
            self.spec, self.run.root, run_id=self.run.root.name, is_first_rank=self.start.is_first_rank
        )
        self.schedule = Schedule(trainer, self.request, self.fence, has_eval=data.eval is not None)
        trainer.add_callback(Memory(self.meter, trainer))
        trainer.add_callback(self.schedule)
        trainer.add_callback(FirstStep(self.check_gradients, self.check_first_step))
        trainer.add_callback(Metrics(self.journal, self.tracker, self.schedule, num_eval=data.num_eval))
        trainer.add_callback(BeforeTraining(self.check_before_training))
        return trainer

    def train(self, resume_from: Path | None) -> TrainOutput:
        """All steps, or as many as there are before a stop."""
        self.journal.stage("wrap")
        return self.trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))

    def check_before_training(self) -> None:
        """Wrapper, number of ranks, shards and dtypes, once everything is wrapped; then started.json."""
        self.journal.stage("check")
        model = self.trainer.model_wrapped
        self.wrapper = checks.wrapper(model, self.spec)
        groups = checks.parameter_groups(model)
        checks.sharded(model, groups, self.spec)
        checks.parameter_dtypes(groups, self.spec)
        by_rank = checks.gather({kind: group.num_local_elements for kind, group in groups.items()})
        self.groups = groups
        self.found = {
            "world_size": checks.world_size(self.trainer.args.world_size, self.spec),
            "backend": dist.get_backend() if dist.is_initialized() else None,
            "parameters": {kind: dataclasses.asdict(group) for kind, group in groups.items()},
            "local_elements_by_rank": by_rank,
            "bucket_view": getattr(model, "gradient_as_bucket_view", None),
        }
        self.write_started()
        self.journal.stage("train")

    def check_gradients(self) -> None:
        """The gradients' dtypes, before the first update."""
        self.found["gradient_dtypes"] = checks.gradient_dtypes(self.trainer.model_wrapped, self.spec)

    def check_first_step(self) -> None:
        """The rows that the ranks took, and the optimizer's states; started.json is completed with them."""
        model = self.trainer.model_wrapped
        self.check_rows()
        self.found["master_dtypes"] = checks.master_dtypes(model, self.spec)
        states = checks.optimizer_states(model, self.trainer.optimizer.optimizer, self.spec)
        num_trained = self.groups[checks.TRAINED].num_elements
        checks.optimizer_sharded(states["num_local_elements"], num_trained, self.spec)
        checks.optimizer_complete(states["num_local_elements"], self.groups[checks.TRAINED], self.spec)
        self.found["optimizer_states"] = states
        self.found["optimizer_elements_by_rank"] = checks.gather(states["num_local_elements"])
        self.write_started()

    def check_rows(self) -> None:
        """No two ranks took the same row."""
        self.found |= checks.distinct_rows(self.trainer.step_rows, len(self.data.train), self.spec)

    def write_started(self) -> None:
        """started.json: first when training may begin, once more when its first step has been checked."""
        if not self.start.is_first_rank:
            return
        started = Started(
            attempt=self.start.attempt,
            time_s=time.time(),
            world_size=self.found["world_size"],
            device=str(self.device),
            wrapper=self.wrapper,
            resumed_from_step=self.resumed_from_step,
            num_parameters=sum(group.num_elements for group in self.groups.values()),
            num_trainable_parameters=self.groups[checks.TRAINED].num_elements,
            num_train_samples=self.data.num_train,
            num_eval_samples=self.data.num_eval,
            num_truncated_samples=self.data.num_truncated,
            versions=installed_versions(),
            checks=self.found,
        )
        write_record(self.run.started(self.start.attempt), started)

    def complete_checkpoint(self, folder: Path) -> None:
        """On rank 0, once all ranks have saved: the manifest, and only then the rotation."""
        self.write_manifest(folder)
        self.fence.check()
        checkpoint.rotate(self.run, self.spec.train.keep_checkpoints)
        self.journal.stage("checkpoint", folder.name)

    def write_manifest(self, folder: Path) -> None:
        """What makes a checkpoint, or the result, complete; unless a later attempt was started meanwhile."""
        self.fence.check()
        checkpoint.write_manifest(
            folder,
            run_id=self.run.root.name,
            attempt=self.start.attempt,
            step=self.trainer.state.global_step,
            plan_hash=self.start.plan_hash,
            spec=self.spec,
            job_id=self.start.job_id,
        )

    def close(self, output: TrainOutput) -> None:
        """Save what there is to save, write the measurements, and the marker last."""
        stopped_by = self.schedule.stopped_by
        if stopped_by is None:
            self.journal.stage("save")
            self.save_result()
        measured = self.run.measured(self.start.attempt, self.start.rank)
        write_record(measured, self.meter.measurement(self.start.rank))
        write_detailed(self.meter, measured.with_name(f"memory-rank-{self.start.rank}.json"))
        self.tracker.close()
        self.trainer.barrier()
        if self.start.is_first_rank:
            if stopped_by is None:
                self.write_finished(output)
            else:
                self.write_stopped(stopped_by)
        self.trainer.barrier()
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()

    def save_result(self) -> None:
        """The adapter or the model, as plain transformers or peft loads it; its manifest last."""
        self.phases.enter(Phase.SAVE)
        if self.start.is_first_rank:
            self.fence.check()
        result.save(self.trainer, self.run.result, self.spec)
        if self.start.is_first_rank:
            saved = checks.saved_tensors(self.run.result, self.groups[checks.TRAINED].num_elements)
            self.journal.stage("check result", f"{saved['saved_tensors']} tensors, {saved['saved_elements']} elements")
            self.write_manifest(self.run.result)

    def write_finished(self, output: TrainOutput) -> None:
        """finished.json, whose losses before and after come from metrics.jsonl: the first attempt wrote the one."""
        before, after = result.losses_before_and_after(self.run, self.trainer.state.global_step)
        schedule = self.schedule
        finished = Finished(
            attempt=self.start.attempt,
            time_s=time.time(),
            num_steps=self.trainer.state.global_step,
            train_loss=output.training_loss,
            eval_loss_before=before,
            eval_loss_after=after,
            samples_per_s=schedule.num_rows / schedule.total_time_s,
            tokens_per_s=schedule.num_tokens / schedule.total_time_s,
            train_time_s=output.metrics["train_runtime"],
            result=str(self.run.result),
        )
        write_record(self.run.finished(self.start.attempt), finished)

    def write_stopped(self, cause: str) -> None:
        """stopped.json, naming the checkpoint, which is complete."""
        step = self.trainer.state.global_step
        folder = self.run.checkpoints / f"{checkpoint.PREFIX}{step}"
        stopped = Stopped(
            attempt=self.start.attempt,
            time_s=time.time(),
            step=step,
            cause=cause,
            checkpoint=str(folder) if (folder / checkpoint.MANIFEST).is_file() else None,
        )
        write_record(self.run.stopped(self.start.attempt), stopped)
