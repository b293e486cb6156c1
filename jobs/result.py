"""What a finished job leaves: an adapter or a model that plain peft or transformers loads in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from jobs.checkpoint import discard
from jobs.dtypes import dtype_name
from jobs.model import result_dtype
from jobs.trainer import JobTrainer
from launcher.runs.layout import RunFolder
from launcher.runs.records import EvalMetrics
from launcher.spec import JobSpec, MethodKind

NOT_PART_OF_A_RESULT = ("training_args.bin",)  # a pickle of the Trainer's, which nothing needs


def save(trainer: JobTrainer, folder: Path, spec: JobSpec) -> None:
    """Save adapter or model with its tokenizer. Every rank takes part: the weights are gathered from all."""
    if trainer.is_world_process_zero() and folder.exists():
        discard(folder)
    trainer.barrier()
    trainer.saved_dtype = result_dtype(spec) if spec.method.kind is MethodKind.FULL else None
    trainer.save_model(str(folder))
    trainer.barrier()
    if trainer.is_world_process_zero():
        for name in NOT_PART_OF_A_RESULT:
            (folder / name).unlink(missing_ok=True)
        if trainer.saved_dtype is not None:
            _tell_dtype(folder / "config.json", dtype_name(trainer.saved_dtype))


def _tell_dtype(config: Path, dtype: str) -> None:
    """Say in config.json what the weights are saved in; transformers wrote there what the trainer held them in."""
    settings = json.loads(config.read_text())
    settings["dtype"] = dtype
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def losses_before_and_after(run: RunFolder, last_step: int) -> tuple[float | None, float | None]:
    """The evaluation losses at step 0 and at the last step, from metrics.jsonl, whichever attempt wrote them."""
    by_step: dict[int, float] = {}
    for line in run.metrics.read_bytes().splitlines() if run.metrics.exists() else ():
        entry: dict[str, Any] = msgspec.json.decode(line)
        if entry["kind"] == "eval":
            evaluation = msgspec.convert(entry, EvalMetrics)
            by_step[evaluation.step] = evaluation.loss
    return by_step.get(0), by_step.get(last_step)
