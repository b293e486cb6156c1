"""From the words of a question to its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.errors import InputError
from launcher.fitting.grid import Grid
from launcher.fitting.types import Answer, Job
from launcher.fitting.words import Question, question
from launcher.host import Host
from launcher.models import model_shape
from launcher.planner.cards import GPUS_PER_NODE, smallest_card_of
from launcher.planner.constants import Constants
from launcher.planner.estimate import Estimator
from launcher.planner.plan import make_plan
from launcher.spec import DeviceSpec, JobSpec


def answer(
    words: Sequence[str], conf_dir: Path, host: Host, cards: Sequence[DeviceSpec], constants: Constants | None = None
) -> Answer:
    """What fits. A question that leaves the method or the sharding open is answered for all of them.

    cards: those to look through for the smallest. constants: with what was calibrated; those that the project ships
    otherwise. Raises InputError where the words are wrong, or nothing that they leave open can be run.
    """
    asked = question(words, conf_dir, host)
    names_a_job = {"method", "shard"} <= asked.keys
    spec = asked.spec() if names_a_job else _any_job(asked)
    estimator = Estimator(model_shape(spec.model.config), constants=constants)
    grid = Grid(asked, estimator, spec, cards)
    rows = grid.rows()
    return Answer(
        words=asked.words,
        model=spec.model.name,
        num_parameters=estimator.shape.num_parameters,
        device=spec.device,
        sequence_length=spec.train.sequence_length,
        global_batch=spec.train.global_batch,
        rows=rows,
        refused=tuple(grid.refused),
        job=_job(asked, estimator, spec, cards) if names_a_job else None,
    )


def _any_job(asked: Question) -> JobSpec:
    """Some job of the question that the rules allow, for what all share. Raises the first one's problems if none is."""
    problem: InputError | None = None
    for method in ("lora", "full", "qlora"):
        for shard in ("ddp", "zero3", "fsdp"):
            more = [f"{key}={value}" for key, value in (("method", method), ("shard", shard)) if key not in asked.keys]
            try:
                return asked.spec(*more)
            except InputError as error:
                problem = problem or error
    assert problem is not None
    raise problem


def _job(asked: Question, estimator: Estimator, spec: JobSpec, cards: Sequence[DeviceSpec]) -> Job:
    sizes = tuple(_other_sizes(asked))
    fewest = (size.gpus_per_node for size in sizes if estimator.best(size).fits)
    held = (smallest_card_of(estimator, size, cards) for size in sizes)
    return Job(
        plan=make_plan(spec, cards, estimator.constants),
        fewest_gpus=next(fewest, None) if spec.device.memory_bytes is not None else None,
        cards=tuple(card for card in held if card is not None),
    )


def _other_sizes(asked: Question) -> Iterator[JobSpec]:
    """The job on every usual number of GPUs a node that the rules allow it on."""
    words = tuple(word for word in asked.words if not word.startswith("gpus="))
    bare = dataclasses.replace(asked, words=words)
    for gpus in GPUS_PER_NODE:
        try:
            spec = bare.spec(f"gpus={gpus}")
        except InputError:
            continue
        if spec.device.kind == "cuda":
            yield spec
