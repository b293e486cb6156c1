"""Read and check a config.json: every problem named before anything is planned from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import InputError, Problem
from launcher.models.architectures import ARCHITECTURES

# transformers 5 writes qwen3_moe's num_experts as num_local_experts, and torch_dtype as dtype; it reads either.
ALIASES = {"num_experts": "num_local_experts", "torch_dtype": "dtype"}

COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "decoder_sparse_step",
)
COUNTS_OR_NULL = ("num_key_value_heads", "head_dim")  # null: every attention head, hidden_size / heads
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
LENGTHS_OR_NULL = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
LISTS_OR_NULL = ("layer_types", "mlp_only_layers")


def read_config(path: Path) -> dict[str, Any]:
    """The entries of path/config.json that decide shapes, dtypes and attention, under transformers' own names.

    Raises InputError for a directory without a readable config.json, an unsupported model type, a model that is
    already quantised, and widths that no model can have.
    """
    text = _read_text(path)
    file = path / "config.json"
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        raise _path_error(path, f"has a broken config.json ({file}, line {error.lineno}: {error.msg})") from None
    if not isinstance(loaded, dict):
        raise _path_error(path, f"has a config.json that is not a JSON object ({file})")
    if "quantization_config" in loaded:
        raise _path_error(path, "is already quantised", "give the unquantised model; method=qlora quantises it")
    problems = check_config(loaded)
    if problems:
        raise InputError(problems)
    given = {ALIASES.get(key, key): value for key, value in loaded.items()}
    wanted = ("model_type", "dtype", *ARCHITECTURES[loaded["model_type"]].defaults)
    return {key: given[key] for key in wanted if key in given}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checked config with transformers' defaults filled in and nulls resolved."""
    architecture = ARCHITECTURES[config["model_type"]]
    given = {ALIASES.get(key, key): value for key, value in config.items()}
    full = {key: given.get(key, default) for key, default in architecture.defaults.items()}
    if full["num_key_value_heads"] is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    if full["head_dim"] is None:
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    if "mlp_only_layers" in full and full["mlp_only_layers"] is None:
        full["mlp_only_layers"] = ()
    return full


def check_config(config: Mapping[str, Any]) -> tuple[Problem, ...]:
    """Everything wrong with a config: empty when model_shape can take it."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        return (_problem("model_type", model_type, "is not supported", f"supported are {supported}"),)
    given = {ALIASES.get(key, key): value for key, value in config.items()}
    known = ARCHITECTURES[model_type].defaults
    problems = tuple(problem for key, value in given.items() if key in known for problem in _check_value(key, value))
    return problems or tuple(_check_relations(model_type, with_defaults(config)))


def _check_value(key: str, value: Any) -> Iterator[Problem]:
    if key in COUNTS and not (_is_count(value) or (value is None and key in COUNTS_OR_NULL)):
        yield _problem(key, value, "must be a whole number of at least 1")
    if key in FLAGS and not isinstance(value, bool):
        yield _problem(key, value, "must be true or false")
    if key in LENGTHS_OR_NULL and value is not None and not _is_positive_number(value):
        yield _problem(key, value, "must be a positive number or null")
    if key in LISTS_OR_NULL and value is not None and not isinstance(value, list | tuple):
        yield _problem(key, value, "must be a list or null")


def _check_relations(model_type: str, full: Mapping[str, Any]) -> Iterator[Problem]:
    heads, kv_heads, head_dim = full["num_attention_heads"], full["num_key_value_heads"], full["head_dim"]
    if heads % kv_heads:
        yield _problem("num_key_value_heads", kv_heads, f"must divide num_attention_heads={heads}")
    # LlamaConfig and Gemma2Config refuse this themselves; the others would round down.
    if model_type in ("llama", "gemma2") and full["hidden_size"] % heads:
        yield _problem("hidden_size", full["hidden_size"], f"must be a multiple of num_attention_heads={heads}")
    elif head_dim % 2 or head_dim < 1:
        yield _problem("head_dim", head_dim, "must be even, for rotary position embeddings turn pairs")
    experts, chosen = full.get("num_local_experts"), full.get("num_experts_per_tok")
    if experts is not None and chosen is not None and chosen > experts:
        yield _problem("num_experts_per_tok", chosen, f"must be at most the number of experts, {experts}")


def _read_text(path: Path) -> str:
    if not path.is_dir():
        raise _path_error(path, "is no directory", "give a directory with a config.json, as save_pretrained writes it")
    file = path / "config.json"
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _path_error(path, "has no config.json", "give a directory as save_pretrained writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _path_error(path, f"has a config.json that cannot be read ({error})") from None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _problem(key: str, value: Any, rule: str, way_out: str = "") -> Problem:
    return Problem(field=f"model.config.{key}", value=value, rule=rule, way_out=way_out)


def _path_error(path: Path, rule: str, way_out: str = "") -> InputError:
    return InputError([Problem(field="model.path", value=str(path), rule=rule, way_out=way_out)])
