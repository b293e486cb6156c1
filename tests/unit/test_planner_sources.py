"""Every term of every plan can be checked by hand: numbers in its formula, and where the formula comes from."""

from __future__ import annotations

import re

import pytest

from launcher.planner.constants import Basis
from launcher.planner.types import RankPlan
from launcher.rules import OFFLOADS
from launcher.spec import Loss, MethodKind, ShardKind
from tests.planner_jobs import estimate, job

MODELS = (
    "llama3-8b",
    "llama3.2-1b",
    "mistral-7b",
    "mixtral-8x7b",
    "qwen2.5-7b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "gemma2-9b",
    "phi3-mini",
)
# A package with its version, a file of this project, a figure's basis, or what the parameters themselves say.
SOURCED = re.compile(
    r"(torch|transformers|accelerate|peft|bitsandbytes|deepspeed|liger-kernel) \d+\.\d+"
    rf"|(launcher|jobs)/\w+\.py|parameter inventory|({'|'.join(Basis)}):"
)
NUMBER = re.compile(r"\d")
CONSTANT = re.compile("|".join(f"{basis}:" for basis in Basis))  # one number, which is the term's size


@pytest.mark.parametrize("model", MODELS)
def test_every_term_says_how_it_is_computed_and_by_whom(model: str) -> None:
    attention = "eager" if model.startswith("gemma") else "sdpa"
    for method in MethodKind:
        for shard in ShardKind:
            for offload in OFFLOADS[shard]:
                for options in ({"gpus": 4}, {"gpus": 4, "checkpointing": "none", "precision": "bf16_pure"}):
                    found = estimate(
                        job(model, method=method, shard=shard, offload=offload, attention=attention, **options)
                    )
                    for rank in found.ranks:
                        check(rank)


@pytest.mark.parametrize("loss", Loss)
def test_every_loss_does(loss: Loss) -> None:
    for rank in estimate(job(loss=loss, gpus=1)).ranks:
        check(rank)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_every_optimizer_does(optimizer: str) -> None:
    for rank in estimate(job(method="full", optimizer=optimizer)).ranks:
        check(rank)


def check(rank: RankPlan) -> None:
    names = [term.name for term in rank.terms]
    assert len(names) == len(set(names)), names
    for term in rank.terms:
        assert term.size_bytes > 0, term
        assert term.phases, term
        assert len(term.phases) == len(set(term.phases)), term
        assert SOURCED.search(term.source), term
        assert NUMBER.search(term.formula) or (term.formula and CONSTANT.match(term.source)), term
