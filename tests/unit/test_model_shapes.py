"""Model shapes against published totals, and against transformers itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from launcher.models import ARCHITECTURES, Role, model_shape
from launcher.paths import conf_dir
from tests.architectures import ONE_OF_EACH, TINY, build, named_shapes, real_shapes, tiny_config

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


def listed_models() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        model = yaml.safe_load(path.read_text())
        if model["source"] != "path":
            yield path.stem, model


MODELS = dict(listed_models())


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
    by_role = {role: [p.name for p in shape.with_role(role) if p.layer == 1] for role in Role}
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
    assert sum(p.num_elements for p in shape.with_role(Role.EMBEDDING, Role.HEAD)) == 2 * 128 * 64
