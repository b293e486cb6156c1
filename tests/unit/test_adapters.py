"""What LoRA adds to a model, and where it is refused, against peft itself."""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from launcher.models import Role, lora_allows_dropout, lora_parameters, lora_target_names, model_shape
from launcher.spec import LoraBias
from tests.architectures import ONE_OF_EACH, TINY, NamedShapes, build, load_in_4_bit, tiny_config, trained_shapes


def real_lora(name: str, targets: tuple[str, ...], rank: int, bias: str) -> NamedShapes:
    wanted = targets[0] if targets == ("all-linear",) else list(targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied heads
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=wanted, bias=bias)
        return trained_shapes(get_peft_model(build(tiny_config(name), "cpu"), config))


@pytest.mark.parametrize("name", TINY)
def test_all_linear_is_what_peft_makes_of_it(name: str) -> None:
    found = lora_parameters(model_shape(tiny_config(name)), ("all-linear",), 4)
    assert [(p.name, p.shape) for p in found] == real_lora(name, ("all-linear",), 4, "none")
    assert {p.role for p in found} == {Role.ADAPTER}


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("q_proj", "v_proj")),
        ("llama", ("self_attn.q_proj", "layers.0.mlp.down_proj")),
        ("llama-tied", ("q_proj", "embed_tokens", "lm_head")),
        ("phi3", ("qkv_proj", "gate_up_proj", "o_proj")),
        ("gemma2", ("gate_proj", "lm_head")),
        ("mixtral", ("q_proj", "gate")),
        ("mixtral", ("w1", "w2", "w3")),
        ("mixtral", ("w2", "o_proj")),
        ("qwen3_moe", ("gate_proj", "up_proj")),
        ("qwen3_moe-some-dense", ("q_proj", "gate_proj", "up_proj", "down_proj", "mlp.gate")),
        ("qwen3_moe-some-dense", ("down_proj", "embed_tokens")),
    ],
)
def test_named_targets_are_what_peft_makes_of_them(name: str, targets: tuple[str, ...]) -> None:
    found = lora_parameters(model_shape(tiny_config(name)), targets, 3)
    assert [(p.name, p.shape) for p in found] == real_lora(name, targets, 3, "none")


@pytest.mark.parametrize("bias", LoraBias)
@pytest.mark.parametrize("name", ["llama-biases", "qwen2", "gemma2-biases"])
def test_biases_are_those_that_peft_unfreezes(name: str, bias: LoraBias) -> None:
    targets = ("q_proj", "o_proj")
    found = lora_parameters(model_shape(tiny_config(name)), targets, 2, bias)
    assert [(p.name, p.shape) for p in found] == real_lora(name, targets, 2, bias.value)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        (
            "llama",
            ("q_proj", "query", "norm"),
            "query, norm matches nothing; LoRA can target q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
            "down_proj, embed_tokens, lm_head or 'all-linear'",
        ),
        (
            "mixtral",
            ("down_proj",),
            "down_proj matches nothing; LoRA can target q_proj, k_proj, v_proj, o_proj, w1, w3, w2, gate, "
            "embed_tokens, lm_head or 'all-linear'",
        ),
        ("mixtral", ("w1", "w2"), "w1 needs its partner: w1 and w3 are one parameter in the experts"),
        ("llama", ("all-linear", "lm_head"), "'all-linear' stands alone: leave out lm_head"),
        (
            "phi3",
            (),
            "no target is named; LoRA can target o_proj, qkv_proj, gate_up_proj, down_proj, embed_tokens, lm_head "
            "or 'all-linear'",
        ),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(name: str, targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        lora_parameters(model_shape(tiny_config(name)), targets, 4)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("all-linear",)),
        ("mixtral", ("all-linear",)),
        ("mixtral", ("q_proj", "v_proj")),
        ("mixtral", ("gate",)),
        ("qwen3_moe", ("down_proj",)),
        ("qwen3", ("down_proj",)),
    ],
)
def test_dropout_is_refused_exactly_where_peft_refuses_it(name: str, targets: tuple[str, ...]) -> None:
    wanted = targets[0] if targets == ("all-linear",) else list(targets)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=wanted, lora_dropout=0.1)
    allowed = lora_allows_dropout(model_shape(tiny_config(name)), targets)
    refusal = pytest.raises(ValueError, match=r"^lora\.ParamWrapper does not work with lora_dropout != 0\.$")
    with contextlib.nullcontext() if allowed else refusal:
        get_peft_model(build(tiny_config(name), "cpu"), config)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_target_name_is_accepted_in_any_order(name: str) -> None:
    shape = model_shape(tiny_config(name))
    names = lora_target_names(shape)
    assert lora_parameters(shape, names, 2) == lora_parameters(shape, tuple(reversed(names)), 2)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_adapters_over_a_4_bit_base_have_the_same_shapes(name: str, tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = get_peft_model(load_in_4_bit(name, tmp_path), config)
    found = lora_parameters(model_shape(tiny_config(name)), ("all-linear",), 4)
    assert [(p.name, p.shape) for p in found] == trained_shapes(model)
