"""A finished run read back in one process: its result, and its models for comparison, one in memory at a time."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from jobs.checkpoint import CheckpointBroken, verify
from jobs.dtypes import torch_dtype
from jobs.model import load_tokenizer, location, quantisation
from launcher.precision import COMPUTE
from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec, MethodKind, read_job

BASE = "base"
RESULT = "result"
MERGED = "merged"


class NoResult(RuntimeError):
    """The run left no complete result to work with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run whose result is complete, file by file as its manifest says."""

    folder: RunFolder
    spec: JobSpec

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the model computes in, in training and here."""
        return torch_dtype(COMPUTE[self.spec.train.precision])

    @property
    def has_adapter(self) -> bool:
        """Whether the result is an adapter to the base, rather than a whole model."""
        return self.spec.method.kind is not MethodKind.FULL


def open_run(directory: Path) -> FinishedRun:
    """Read a run back. NoResult says why there is nothing to work with."""
    folder = RunFolder(directory.resolve())
    if not folder.job.exists():
        raise NoResult(f"{directory} is no run folder: it has no {folder.job.name}")
    try:
        verify(folder.result)
    except CheckpointBroken as error:
        raise NoResult(
            f"the run has no complete result ({error}); a run has one once it has done all its steps"
        ) from None
    return FinishedRun(folder=folder, spec=read_job(folder.job))


def quieten() -> None:
    """Keep the libraries' progress bars, advice and deprecations of each other off a command's screen."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    getLogger("bitsandbytes").setLevel(ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, imported by accelerate, warns of its own guess


def pick_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tokenizer_of(run: FinishedRun) -> Any:
    """The tokenizer that the run trained with."""
    return load_tokenizer(run.spec)


def load_base(run: FinishedRun, device: torch.device, *, quantised: bool) -> Any:
    """The model that the run began with; quantised as in training, or as it was published."""
    where, arguments = location(run.spec.model)
    return _load(where, run, device, **arguments, **(quantisation(run.spec, device) if quantised else {}))


def attach_result(base: Any, run: FinishedRun) -> Any:
    """The base with the run's adapter."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, run.folder.result, autocast_adapter_dtype=False).eval()


def models(run: FinishedRun, device: torch.device, *, merged: bool = False) -> Iterator[tuple[str, Any]]:
    """The base, then the result: use each before asking for the next, for only one is held.

    merged: take the merged model for the result, as anyone else would load it.
    """
    if merged and not run.folder.merged.is_dir():
        raise NoResult(f"the run has no merged model yet: fitlaunch merge {run.folder.root} makes it")
    model = load_base(run, device, quantised=True)
    yield BASE, model
    if merged:
        del model
        gc.collect()
        yield MERGED, _load(str(run.folder.merged), run, device)
        return
    if run.has_adapter:
        model = attach_result(model, run)
    else:
        del model
        gc.collect()
        model = _load(str(run.folder.result), run, device)
    yield RESULT, model


def _load(where: str, run: FinishedRun, device: torch.device, **arguments: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        where,
        dtype=run.dtype,
        attn_implementation=run.spec.train.attention.value,
        trust_remote_code=False,
        use_safetensors=True,
        **{**arguments, "device_map": {"": device}},
    )
    return model.eval()
