"""Model shapes against published totals, and against transformers, peft and bitsandbytes themselves."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from launcher.errors import InputError
from launcher.models import (
    ARCHITECTURES,
    ModelShape,
    Role,
    lora_allows_dropout,
    lora_parameters,
    lora_target_names,
    model_shape,
    quantised_parameters,
    read_config,
)
from launcher.paths import conf_dir
from launcher.spec import LoraBias

# As the model cards, the papers or the safetensors index of each hub repository have them; tied embeddings once.
PUBLISHED_TOTALS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "phi3-mini": 3_821_079_552,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512,
}

TINY_WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
MIXTRAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Every branch of every architecture: biases, head widths, tied heads, blocks without experts.
TINY: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 32},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral"},
    "mistral-head-dim": {"model_type": "mistral", "head_dim": 32},
    "mixtral": {"model_type": "mixtral", **MIXTRAL_EXPERTS},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-biases": {"model_type": "qwen3", "attention_bias": True},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 32, **QWEN_EXPERTS},
    "qwen3_moe-some-dense": {"model_type": "qwen3_moe", "mlp_only_layers": [0], **QWEN_EXPERTS},
    "qwen3_moe-every-second": {"model_type": "qwen3_moe", "decoder_sparse_step": 2, **QWEN_EXPERTS},
    "gemma2": {"model_type": "gemma2", "head_dim": 32},
    "gemma2-biases": {"model_type": "gemma2", "head_dim": 16, "attention_bias": True},
    "phi3": {"model_type": "phi3"},
}
ONE_OF_EACH = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "phi3")

NamedShapes = list[tuple[str, tuple[int, ...]]]


def listed_models() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        model = yaml.safe_load(path.read_text())
        if model["source"] != "path":
            yield path.stem, model


MODELS = dict(listed_models())


def tiny_config(name: str) -> dict[str, Any]:
    return {**TINY_WIDTHS, **TINY[name]}


def build(config: dict[str, Any], device: str) -> PreTrainedModel:
    given = {key: value for key, value in config.items() if key not in ("model_type", "dtype")}
    auto_config = AutoConfig.for_model(
        config["model_type"], **given, pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype="float32"
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(auto_config)


def named_shapes(shape: ModelShape) -> NamedShapes:
    return [(parameter.name, parameter.shape) for parameter in shape.parameters]


def real_shapes(model: torch.nn.Module) -> NamedShapes:
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def trained_shapes(model: torch.nn.Module) -> NamedShapes:
    trained = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    base_names = [(name, base_name(name), shape) for name, shape in trained]
    # The base's own biases come last in lora_parameters.
    adapters = [(name, shape) for name, _, shape in base_names if ".lora_" in name]
    return adapters + [(base, shape) for name, base, shape in base_names if ".lora_" not in name]


def base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def real_lora(name: str, targets: tuple[str, ...], rank: int, bias: str) -> NamedShapes:
    wanted = targets[0] if targets == ("all-linear",) else list(targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied heads
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=wanted, bias=bias)
        return trained_shapes(get_peft_model(build(tiny_config(name), "cpu"), config))


# Published totals


def test_every_listed_model_has_a_published_total() -> None:
    assert set(MODELS) == set(PUBLISHED_TOTALS)


@pytest.mark.parametrize("name", PUBLISHED_TOTALS)
def test_total_is_the_published_one(name: str) -> None:
    assert model_shape(MODELS[name]["config"]).num_parameters == PUBLISHED_TOTALS[name]


@pytest.mark.parametrize("name", MODELS)
def test_file_describes_itself(name: str) -> None:
    model = MODELS[name]
    assert model["name"] == name
    assert set(model) == {"name", "source", "hub_id", "revision", "license", "gated", "path", "config"}
    assert (model["source"], model["path"]) == ("embedded" if name == "smollm2-135m" else "hub", None)


def test_path_model_is_empty_until_its_directory_is_read() -> None:
    model = yaml.safe_load((conf_dir() / "model" / "path.yaml").read_text())
    assert (model["source"], model["path"], model["config"]) == ("path", None, {})


# transformers


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_a_listed_model_are_those_of_transformers(name: str) -> None:
    config = {**MODELS[name]["config"], "num_hidden_layers": 2}
    assert named_shapes(model_shape(config)) == real_shapes(build(config, "meta"))


@pytest.mark.parametrize("name", TINY)
def test_parameters_of_every_variant_are_those_of_transformers(name: str) -> None:
    config = tiny_config(name)
    assert named_shapes(model_shape(config)) == real_shapes(build(config, "meta"))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_missing_entries_take_the_defaults_of_transformers(model_type: str) -> None:
    config = {"model_type": model_type, "num_hidden_layers": 1}
    shape = model_shape(config)
    assert named_shapes(shape) == real_shapes(build(config, "meta"))
    defaults = AutoConfig.for_model(model_type)
    assert ARCHITECTURES[model_type].defaults["num_hidden_layers"] == defaults.num_hidden_layers
    assert shape.max_position_embeddings == defaults.max_position_embeddings
    assert shape.sliding_window == getattr(defaults, "sliding_window", None)
    assert shape.attn_logit_softcapping == getattr(defaults, "attn_logit_softcapping", None)
    assert shape.final_logit_softcapping == getattr(defaults, "final_logit_softcapping", None)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_sdpa_support_is_that_of_transformers(name: str) -> None:
    config = tiny_config(name)
    assert model_shape(config).supports_sdpa == build(config, "meta")._supports_sdpa


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "qwen2", "sliding_window": 512}, None),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True}, 512),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 32}, None),
        ({"model_type": "gemma2"}, 4096),
        ({"model_type": "gemma2", "layer_types": ["full_attention"] * 26}, None),
    ],
)
def test_sliding_window_counts_only_where_a_layer_uses_it(config: dict[str, Any], window: int | None) -> None:
    assert model_shape(config).sliding_window == window


def test_roles_of_a_mixture_of_experts() -> None:
    shape = model_shape(tiny_config("qwen3_moe-some-dense"))
    by_role = {role: [p.name for p in shape.in_layer(1) if p.role is role] for role in Role}
    block = "model.layers.1."
    assert by_role == {
        Role.EMBEDDING: [],
        Role.LINEAR: [f"{block}self_attn.{which}_proj.weight" for which in "qkvo"],
        Role.BIAS: [],
        Role.EXPERT: [f"{block}mlp.experts.gate_up_proj", f"{block}mlp.experts.down_proj"],
        Role.ROUTER: [f"{block}mlp.gate.weight"],
        Role.NORM: [
            f"{block}self_attn.q_norm.weight",
            f"{block}self_attn.k_norm.weight",
            f"{block}input_layernorm.weight",
            f"{block}post_attention_layernorm.weight",
        ],
        Role.HEAD: [],
        Role.ADAPTER: [],
    }
    assert shape.num_embedding_parameters == 2 * 128 * 64


# peft


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


# bitsandbytes


def load_in_4_bit(name: str, folder: Path) -> PreTrainedModel:
    build(tiny_config(name), "cpu").save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes misses an optional kernel package
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.bfloat16
        )


@pytest.mark.parametrize("name", ["llama-tied", *ONE_OF_EACH])
def test_quantised_parameters_are_those_of_a_real_4_bit_load(name: str, tmp_path: Path) -> None:
    model = load_in_4_bit(name, tmp_path)
    shape = model_shape(tiny_config(name))
    really = [(n, tuple(p.quant_state.shape)) for n, p in model.named_parameters() if p.dtype is torch.uint8]
    assert really == [(p.name, p.shape) for p in quantised_parameters(shape)]
    assert [n for n, _ in model.named_parameters()] == [p.name for p in shape.parameters]


@pytest.mark.parametrize("name", ["llama-tied", "mixtral"])
def test_quantised_parameters_are_those_of_a_real_8_bit_load(name: str, tmp_path: Path) -> None:
    build(tiny_config(name), "cpu").save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.bfloat16)
    really = [(n, tuple(p.shape), p.SCB.shape) for n, p in model.named_parameters() if p.dtype is torch.int8]
    planned = quantised_parameters(model_shape(tiny_config(name)))
    assert really == [(p.name, p.shape, (p.shape[0],)) for p in planned]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_adapters_over_a_4_bit_base_have_the_same_shapes(name: str, tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = get_peft_model(load_in_4_bit(name, tmp_path), config)
    found = lora_parameters(model_shape(tiny_config(name)), ("all-linear",), 4)
    assert [(p.name, p.shape) for p in found] == trained_shapes(model)


# config.json


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
