"""What is composed without Hydra is what Hydra composes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.assemble import assemble, read_value
from launcher.errors import InputError
from launcher.options import config_groups, nearest
from launcher.overrides import check_overrides
from launcher.paths import conf_dir
from tests.composed import compose_conf

CONF = conf_dir()
FILES = [f"{group}={name}" for group, names in config_groups(CONF).items() for name in names]
JOBS = (
    ("method=qlora", "shard=zero3", "shard.offload=all", "gpus=8", "train.learning_rate=1"),
    ("experiment=demo", "train.learning_rate=3e-4", "train.max_steps=null", "method.targets=[q_proj, v_proj]"),
    ("data=alpaca", "data.path=2024", "data.eval_fraction=0", "plan.explain=TRUE", "runs_dir=/tmp/my runs"),
    ("shard=zero2", "shard.overlap_comm=true", "shard.reduce_bucket_size=5_000_000", "nodes=2", "cluster=slurm"),
    ("train.epochs=2", "train.epochs=.5", "train.warmup_ratio=0", "method.alpha=16", "tracker.project='a, b'"),
    ("model=path", "model.path='/models/a=b'", "model.revision=1.10"),
)


@pytest.mark.parametrize("word", FILES)
def test_every_file_is_composed_as_hydra_does(word: str) -> None:
    assert assemble([word], CONF) == compose_conf(word)


@pytest.mark.parametrize("words", JOBS, ids=" ".join)
def test_overrides_are_applied_as_hydra_does(words: tuple[str, ...]) -> None:
    ours, hydras = assemble(words, CONF), compose_conf(*words)
    assert ours == hydras
    assert leaves(ours) == leaves(hydras)


def leaves(value: Any, place: str = "") -> dict[str, type]:
    """The type of every value, for 1 == 1.0 == True."""
    if not isinstance(value, dict):
        return {place: type(value)}
    return {key: kind for name, part in value.items() for key, kind in leaves(part, f"{place}.{name}").items()}


def hydras_value(text: str) -> Any:
    """What Hydra makes of a value; ValueError where it is none, or several, or a call."""
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except HydraException as error:
        raise ValueError(str(error)) from None
    if override.is_sweep_override():
        raise ValueError("a sweep")
    value = override._value
    if isinstance(value, list):
        return [part.text if isinstance(part, QuotedString) else part for part in value]
    return value.text if isinstance(value, QuotedString) else value


PIECES = st.sampled_from(
    [*"0123456789_.+-eE:=/ \t'\"[],\\$%@", "true", "NULL", "inf", "nan", "1e5", "0x", "auto", "a", "\\,", "\\ ", "\\["]
)


@given(st.lists(PIECES, max_size=7).map("".join))
@example("'a \\' b'")
@example("[a, 'b, c']")
@example("08")
@example("1_000.5")
@settings(max_examples=300, deadline=None)
def test_a_value_that_is_read_is_read_as_hydra_does(text: str) -> None:
    """Ours may refuse what Hydra takes (a list with quotes and commas), never the reverse, and never differ."""
    try:
        ours = read_value(text)
    except ValueError:
        return
    theirs = hydras_value(text)
    both_nan = isinstance(ours, float) and math.isnan(ours) and math.isnan(theirs)
    assert both_nan or (ours == theirs and type(ours) is type(theirs)), (text, ours, theirs)


@pytest.mark.parametrize(
    "text",
    ["4", "-0.5", "1e-4", "true", "null", "q_proj", "[q_proj,v_proj]", "'a b'", "a b", "/tmp/a-b.json", ""],
)
def test_what_people_type_is_read(text: str) -> None:
    assert read_value(text) == hydras_value(text)


WRONG = (
    "model=llama3-8bb",
    "modle=llama3-8b",
    "train.micro_batches=4",
    "gpus=many",
    "train.packing=maybe",
    "method=null",
    "data.path=${oc.env:HOME}",
    "hello",
)


@pytest.mark.parametrize("word", WRONG)
def test_wrong_words_are_met_as_on_launch_py(word: str) -> None:
    """The same field, rule and way out; how to write a word that is none differs in its reason."""
    with pytest.raises(InputError) as caught:
        assemble([word], CONF)
    (ours,) = caught.value.problems
    (theirs,) = check_overrides([word], CONF, multirun=False)
    assert (ours.field, ours.rule) == (theirs.field, theirs.rule)
    assert ours.way_out == theirs.way_out or word == "hello"


def test_all_problems_come_together() -> None:
    with pytest.raises(InputError) as caught:
        assemble(["model=nope", "+gpus=2", "method=lora", "method=qlora", "method=full,lora"], CONF)
    assert [str(problem) for problem in caught.value.problems] == [
        f"model=nope is not known: {nearest('nope', config_groups(CONF)['model'])}",
        "+gpus=2 cannot be read: nothing is added, removed or moved: write key=value",
        "method=qlora is given twice: choose one",
        "method=full,lora cannot be read: it has several values: give one",
    ]


def test_what_only_hydra_reads_is_refused(tmp_path: Path) -> None:
    """A defaults list in an experiment, and a key that the schema does not know."""
    copy = tmp_path / "conf"
    for path in CONF.rglob("*.yaml"):
        target = copy / path.relative_to(CONF)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    (copy / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: llama3-8b\n")
    (copy / "experiment" / "typo.yaml").write_text("# @package _global_\ntrain:\n  micro_batches: 4\n")
    (copy / "experiment" / "broken.yaml").write_text("# @package _global_\ntrain: [\n")
    for name, rule in (("mine", "has a defaults list, which only Hydra reads"), ("typo", "is not an option")):
        with pytest.raises(InputError) as caught:
            assemble([f"experiment={name}"], copy)
        assert [problem.rule for problem in caught.value.problems] == [rule]
    with pytest.raises(InputError, match="cannot be read"):
        assemble(["experiment=broken"], copy)
