"""What must hold for everything that is proposed: it composes, it fits, and it trains the same where it says so."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from launcher.assemble import assemble
from launcher.compose import make_spec
from launcher.devices import listed_devices
from launcher.errors import InputError
from launcher.models import model_shape
from launcher.paths import conf_dir
from launcher.planner.estimate import Estimator
from launcher.planner.fit import suggestions
from launcher.planner.fit.search import COST_OF_A_CHANGE
from launcher.planner.plan import make_plan
from launcher.planner.types import MemoryPlan, Verdict
from launcher.shards import shard_defaults
from launcher.spec import ActivationCheckpointing, JobSpec, Loss, MethodKind, Offload, ShardKind
from tests.composed import host

CARDS = listed_devices()
MODELS = ("smollm2-1.7b", "llama3-8b", "qwen2.5-7b", "qwen3-30b-a3b", "gemma2-9b", "llama3.1-70b", "mixtral-8x7b")
DEVICES = ("rtx4060-8g", "rtx4090", "a100-40g", "h100-80g", "t4", "cpu")


@st.composite
def jobs(draw: Any) -> tuple[str, ...]:
    """The words of any job; not all of them are allowed."""
    words = {
        "model": draw(st.sampled_from(MODELS)),
        "method": draw(st.sampled_from(["full", "lora", "qlora"])),
        "shard": draw(st.sampled_from(list(ShardKind))),
        "device": draw(st.sampled_from(DEVICES)),
        "gpus": draw(st.sampled_from([1, 2, 8])),
        "train.global_batch": draw(st.sampled_from([8, 16, 48])),
        "train.micro_batch": draw(st.sampled_from(["auto", "1", "2", "4"])),
        "train.sequence_length": draw(st.sampled_from([256, 1000, 4096])),
        "train.loss": draw(st.sampled_from(list(Loss))),
        "train.activation_checkpointing": draw(st.sampled_from(list(ActivationCheckpointing))),
        "train.optimizer": draw(st.sampled_from(["adamw", "adamw", "adamw_8bit"])),
        "launcher": draw(st.sampled_from(["torchrun", "torchrun", "deepspeed"])),
    }
    if words["method"] == "qlora":
        words["method.quant_type"] = draw(st.sampled_from(["nf4", "nf4", "int8"]))
    return tuple(f"{key}={value}" for key, value in words.items())


def spec_of(*words: str) -> JobSpec:
    """The job that words mean, composed as on the command line; InputError where a rule forbids it."""
    keys = {word.partition("=")[0] for word in words[::-1]}
    last = {key: next(word for word in words[::-1] if word.startswith(f"{key}=")) for key in keys}
    return make_spec(assemble(["mode=plan", *last.values()], conf_dir()), host())


def allowed(words: tuple[str, ...]) -> JobSpec:
    try:
        return spec_of(*words)
    except InputError:
        assume(False)
        raise


def what_decides_the_training(spec: JobSpec) -> JobSpec:
    """The job with everything made equal that only says how it is computed."""
    plain = shard_defaults(ShardKind.DDP, 1, on_cuda=True)
    method = dataclasses.replace(spec.method, storage_dtype=None)
    train = dataclasses.replace(
        spec.train,
        micro_batch=None,
        loss=Loss.CROSS_ENTROPY,
        activation_checkpointing=ActivationCheckpointing.NONE,
    )
    return dataclasses.replace(spec, shard=plain, train=train, method=method)


@given(jobs())
@settings(deadline=None, max_examples=30)
def test_every_suggestion_composes_fits_and_trains_the_same_where_it_says_so(words: tuple[str, ...]) -> None:
    asked = allowed(words)
    found = make_plan(asked, CARDS)
    assert len(found.suggestions) <= 3
    assert bool(found.suggestions) <= (found.verdict in (Verdict.DOES_NOT_FIT, Verdict.TOO_CLOSE))
    for suggestion in found.suggestions:
        changed = spec_of(*words, *suggestion.overrides)  # no rule is broken
        again = make_plan(changed, CARDS)
        assert again.verdict is Verdict.FITS, suggestion
        assert again.process_bytes == suggestion.process_bytes
        assert suggestion.time_ratio > 0
        same = what_decides_the_training(changed) == what_decides_the_training(asked)
        assert same is not suggestion.changes_training, suggestion


@given(jobs())
@settings(deadline=None, max_examples=12)
def test_what_trains_the_same_comes_first_and_the_cheapest_of_it(words: tuple[str, ...]) -> None:
    found = make_plan(allowed(words), CARDS)
    marks = [s.changes_training for s in found.suggestions]
    assert marks == sorted(marks)
    kept = [s for s in found.suggestions if not s.changes_training]
    costs = [s.time_ratio * COST_OF_A_CHANGE ** len(s.overrides) for s in kept]
    assert costs == sorted(costs)
    sets = [set(s.overrides) for s in found.suggestions]
    assert not [(a, b) for number, a in enumerate(sets) for b in sets[number + 1 :] if a <= b]


@given(jobs(), st.integers(4, 160))
@settings(deadline=None, max_examples=25)
def test_more_memory_never_makes_a_fitting_job_not_fit(words: tuple[str, ...], gib: int) -> None:
    """Nor a job that is too close to call one that does not."""
    spec = allowed(words)
    order = (Verdict.DOES_NOT_FIT, Verdict.TOO_CLOSE, Verdict.FITS)
    estimator = Estimator(model_shape(spec.model.config))

    def rank(memory_bytes: int) -> int:
        device = dataclasses.replace(spec.device, memory_bytes=memory_bytes)
        return order.index(estimator.best(dataclasses.replace(spec, device=device)).verdict)

    assert rank(gib * 2**30) <= rank((gib + 1) * 2**30) <= rank(gib * 2**31)


@given(jobs())
@settings(deadline=None, max_examples=30)
def test_bounds_grow_with_micro_batch_and_sequence(words: tuple[str, ...]) -> None:
    spec = allowed(words)
    estimator = Estimator(model_shape(spec.model.config))

    def bounds(micro_batch: int, length: int) -> tuple[int, int]:
        train = dataclasses.replace(
            spec.train, micro_batch=micro_batch, sequence_length=length, global_batch=8 * micro_batch * spec.world_size
        )
        need = estimator.estimate(dataclasses.replace(spec, train=train)).need
        return need.low_bytes, need.high_bytes

    here = bounds(2, 512)
    assert bounds(3, 512) >= here
    assert bounds(2, 576) >= here


NEEDS_HELP = (
    ("model=llama3-8b", "method=full", "device=rtx4090", "gpus=8"),
    ("model=llama3-8b", "method=lora", "device=rtx4090", "gpus=1", "train.micro_batch=16"),
    ("model=qwen2.5-7b", "method=lora", "device=a100-40g", "gpus=1", "train.activation_checkpointing=none",
     "train.sequence_length=8192"),
    ("model=llama3.1-70b", "method=lora", "shard=zero3", "device=a100-80g", "gpus=2"),
)  # fmt: skip


@pytest.mark.parametrize("words", NEEDS_HELP, ids=" ".join)
def test_nothing_cheaper_that_trains_the_same_was_missed(words: tuple[str, ...]) -> None:
    """Against a search of everything: every loss, sharding, micro batch, and checkpointing that keeps no more."""
    asked = spec_of(*words)
    found = make_plan(asked, CARDS)
    best = next((s for s in found.suggestions if not s.changes_training), None)
    cheapest = min(_all_equivalents(words, asked), default=None)
    assert (best is None) == (cheapest is None)
    if best is not None and cheapest is not None:
        assert best.time_ratio * COST_OF_A_CHANGE ** len(best.overrides) == pytest.approx(cheapest)


# What keeps more than the job asks for is not proposed, though it may be faster with a smaller micro batch.
RECOMPUTING = (ActivationCheckpointing.NONE, ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL)


def _all_equivalents(words: tuple[str, ...], asked: JobSpec) -> list[float]:
    """What every way that fits costs: its time beside the job's as asked for, and the price of each option to type."""
    estimator = Estimator(model_shape(asked.model.config))
    smallest = asked if asked.train.micro_batch is not None else asked.with_micro_batch(1)
    before = _seconds(estimator, smallest)
    costs = []
    for shard in ShardKind:
        for offload in Offload:
            for loss in {asked.train.loss, *Loss}:
                for checkpointing in RECOMPUTING[RECOMPUTING.index(asked.train.activation_checkpointing) :]:
                    more = [f"shard={shard}"] if shard is not asked.shard.kind else []
                    more += [f"shard.offload={offload}"] if offload is not asked.shard.offload else []
                    more += [f"train.loss={loss}"] if loss is not asked.train.loss else []
                    if checkpointing is not asked.train.activation_checkpointing:
                        more.append(f"train.activation_checkpointing={checkpointing}")
                    costs += _costs_of(estimator, words, asked, more, before)
    return costs


def _costs_of(
    estimator: Estimator, words: tuple[str, ...], asked: JobSpec, more: list[str], before: float
) -> list[float]:
    costs = []
    named = asked.train.micro_batch
    for size in (None,) if named is None else (size for size in range(1, named + 1)):
        extra = [] if size in (None, named) else [f"train.micro_batch={size}"]
        try:
            spec = spec_of(*words, *more, *extra)
        except InputError:
            continue
        tried = estimator.best(spec)
        if tried.fits:
            costs.append(_seconds(estimator, tried.spec) / before * COST_OF_A_CHANGE ** len([*more, *extra]))
    return costs


def _seconds(estimator: Estimator, spec: JobSpec) -> float:
    from launcher.planner.timing import step_time

    return step_time(estimator.workload(spec)).seconds_per_token


def test_suggestions_of_a_plan_are_those_of_its_job() -> None:
    spec = spec_of(*NEEDS_HELP[0])
    estimator = Estimator(model_shape(spec.model.config))
    assert suggestions(estimator, spec, estimator.best(spec)) == plan(spec).suggestions
    assert spec.method.kind is MethodKind.FULL


def plan(spec: JobSpec) -> MemoryPlan:
    return make_plan(spec, CARDS)
