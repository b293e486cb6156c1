"""Every wrong word on the command line is found, all at once, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.options import config_groups, schema_fields
from launcher.overrides import check_overrides

CONF = Path(__file__).parents[2] / "conf"


def problems(*overrides: str, multirun: bool = False) -> list[str]:
    return [str(problem) for problem in check_overrides(overrides, CONF, multirun=multirun)]


GOOD = (
    "model=llama3-8b",
    "method=qlora",
    "method.targets=[q_proj,v_proj]",
    "method.targets=all-linear",
    "shard.offload=all",
    "shard.overlap_comm=true",
    "shard.overlap_comm=auto",
    "gpus=8",
    "gpus=auto",
    "data.path=/tmp/my rows.json",
    "data.path=2024",
    "train.learning_rate=1e-4",
    "train.learning_rate=1",
    "train.max_steps=null",
    "plan.explain=true",
    "experiment=demo",
    "hydra/sweeper=basic",
    "hydra.verbose=true",
)


def test_good_overrides_pass() -> None:
    assert problems(*GOOD) == []


def test_a_sweep_passes_with_multirun_only() -> None:
    assert problems("method=lora,qlora", "gpus=1,2", "train.epochs=range(1,3)", multirun=True) == []
    assert problems("method=lora,qlora") == ["method=lora,qlora has several values: add -m to run every one of them"]


def test_every_value_of_a_sweep_is_checked() -> None:
    assert problems("method=lora,qlroa", "gpus=1,x", multirun=True) == [
        "method=qlroa is not known: did you mean qlora?",
        "gpus=x must be a whole number or auto",
    ]


ONLY_SET = "can only be set: nothing is added, removed or moved"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lerning_rate=3", "train.lerning_rate=3 is not an option: did you mean train.learning_rate?"),
        ("mdel=llama3-8b", "mdel=llama3-8b is not an option: did you mean model?"),
        ("model=llama3-9b", "model=llama3-9b is not known: did you mean llama3-8b?"),
        ("model=null", "model=null is not known: choose from "),
        ("gpus=eight", "gpus=eight must be a whole number or auto"),
        ("gpus=1.5", "gpus=1.5 must be a whole number or auto"),
        ("gpus=null", "gpus=null must be a whole number or auto"),
        ("train.epochs=null", "train.epochs=null must be a number"),
        ("train.packing=1", "train.packing=1 must be true or false"),
        ("train.micro_batch=small", "train.micro_batch=small must be a whole number or auto"),
        ("mode=[run]", "mode=['run'] must be text"),
        ("+train.epochs=2", f"+train.epochs=2 {ONLY_SET}: write train.epochs=VALUE"),
        ("++gpus=2", f"++gpus=2 {ONLY_SET}: write gpus=VALUE"),
        ("~tracker", f"~tracker {ONLY_SET}: write tracker=VALUE"),
        ("model@other=llama3-8b", f"model@other=llama3-8b {ONLY_SET}: write model=VALUE"),
        ("gpus", "gpus cannot be read: write key=value (missing EQUAL at '<EOF>')"),
        (
            "fit='${oc.env:HOME}'",
            "fit=${oc.env:HOME} is an interpolation; values are taken as they stand: write the value itself",
        ),
        (
            "model.config.hidden_size=8",
            "model.config.hidden_size=8 is not an option: "
            "the architecture is the model's own: use model=path model.path=DIR",
        ),
        ("device.memory_bytes=8", "device.memory_bytes=8 is not an option: choose from "),
        ("job_schema=1", "job_schema=1 is not an option: choose from "),
    ],
)  # fmt: skip
def test_wrong_overrides(override: str, said: str) -> None:
    (found,) = problems(override)
    assert found == said or (said.endswith("choose from ") and found.startswith(said))


def test_an_unknown_key_is_never_advised_with_a_plus() -> None:
    assert problems("+foo=1")[0].startswith("foo=1 is not an option: choose from ")
    assert "+" not in problems("foo=1")[0]


def test_all_problems_come_together() -> None:
    assert len(problems("gpus=x", "foo=1", "mode=null", "model=y")) == 4


def test_every_group_and_key_is_listed() -> None:
    assert set(config_groups(CONF)) == {
        "cluster", "data", "device", "experiment", "method", "model", "shard", "tracker", "train",
    }  # fmt: skip
    assert "train.global_batch" in schema_fields()
    assert "model.path" in schema_fields()
    assert not any(key.startswith("device.") for key in schema_fields())
