"""config.json: what is read of it, and how one that no model can have is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import InputError
from launcher.models import model_shape, read_config
from tests.architectures import build, tiny_config


def test_config_is_read_back_as_transformers_wrote_it(tmp_path: Path) -> None:
    model = build(tiny_config("qwen3_moe"), "cpu")
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert config["dtype"] == "float32"
    assert model_shape(config) == model_shape(tiny_config("qwen3_moe"))


def test_config_of_older_transformers_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"})
    )
    assert read_config(tmp_path) == {"model_type": "llama", "dtype": "float16"}


def refusal_of(path: Path) -> str:
    with pytest.raises(InputError) as refusal:
        read_config(path)
    return str(refusal.value)


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    assert refusal_of(path) == (
        f"model.path={path} is no directory: give a directory with a config.json, as save_pretrained writes it"
    )


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    assert refusal_of(tmp_path) == (
        f"model.path={tmp_path} has no config.json: give a directory as save_pretrained writes it"
    )


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{\n  "model_type": "llama",\n  "hidden_size":\n}\n')
    assert refusal_of(tmp_path) == (f"model.path={tmp_path} has a broken config.json ({file}, line 4: Expecting value)")


@pytest.mark.parametrize("text", ["[]", "3", '"llama"'])
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    assert refusal_of(tmp_path) == f"model.path={tmp_path} has a config.json that is not a JSON object ({file})"


def test_quantised_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"bits": 4}}')
    assert refusal_of(tmp_path) == (
        f"model.path={tmp_path} is already quantised: give the unquantised model; method=qlora quantises it"
    )


@pytest.mark.parametrize("model_type", ["gpt2", None, 7, ["llama"]])
def test_unsupported_model_type_is_refused_with_the_supported_ones(tmp_path: Path, model_type: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    value = "" if model_type is None else f"={model_type}"
    assert refusal_of(tmp_path) == (
        f"model.config.model_type{value} is not supported: supported are llama, mistral, mixtral, qwen2, qwen3, "
        "qwen3_moe, gemma2, phi3"
    )


def test_all_problems_of_a_config_are_reported_together() -> None:
    config = {
        "model_type": "llama",
        "hidden_size": -64,
        "vocab_size": "32000",
        "num_hidden_layers": 2.0,
        "num_attention_heads": True,
        "head_dim": 0,
        "tie_word_embeddings": "no",
        "mlp_bias": None,
    }
    with pytest.raises(InputError) as refusal:
        model_shape(config)
    assert str(refusal.value).splitlines() == [
        "model.config.hidden_size=-64 must be a whole number of at least 1",
        "model.config.vocab_size=32000 must be a whole number of at least 1",
        "model.config.num_hidden_layers=2.0 must be a whole number of at least 1",
        "model.config.num_attention_heads=True must be a whole number of at least 1",
        "model.config.head_dim=0 must be a whole number of at least 1",
        "model.config.tie_word_embeddings=no must be true or false",
        "model.config.mlp_bias must be true or false",
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 5},
            "model.config.num_key_value_heads=5 must divide num_attention_heads=32",
        ),
        (
            {"model_type": "llama", "hidden_size": 100, "num_attention_heads": 32, "head_dim": 8},
            "model.config.hidden_size=100 must be a multiple of num_attention_heads=32",
        ),
        (
            {"model_type": "qwen2", "hidden_size": 96, "num_attention_heads": 32},
            "model.config.head_dim=3 must be even, for rotary position embeddings turn pairs",
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3},
            "model.config.num_experts_per_tok=3 must be at most the number of experts, 2",
        ),
        (
            {"model_type": "mistral", "sliding_window": -1},
            "model.config.sliding_window=-1 must be a positive number or null",
        ),
        (
            {"model_type": "qwen3_moe", "mlp_only_layers": 3},
            "model.config.mlp_only_layers=3 must be a list or null",
        ),
    ],
)
def test_widths_that_no_model_can_have_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        model_shape(config)
    assert str(refusal.value) == message
