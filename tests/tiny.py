"""Tiny models and data for the tests: seeded random weights, a real tokenizer, rows that can be learned.

Everything is written in the form the hub uses (config.json, model.safetensors, tokenizer.json), so that the code under
test loads it exactly as it loads a real model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 512
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
_BY_TYPE: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 128},
    "mistral": {"intermediate_size": 128, "sliding_window": None},
    "qwen2": {"intermediate_size": 128},
    "qwen3": {"intermediate_size": 128, "head_dim": 16},
    "gemma2": {"intermediate_size": 128, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
    "phi3": {"intermediate_size": 128},
    "mixtral": {"intermediate_size": 64, "num_local_experts": 4, **_EXPERTS},
    "qwen3_moe": {
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "head_dim": 16,
        "num_experts": 4,
        "decoder_sparse_step": 1,
        **_EXPERTS,
    },
}
MODEL_TYPES = tuple(_BY_TYPE)

_SUBJECTS = ("cat", "dog", "bird", "fish", "horse", "mouse", "wolf", "bear")
_COLOURS = ("red", "blue", "green", "black", "white", "grey")


def make_tiny_model(
    directory: Path,
    model_type: str = "llama",
    *,
    tied: bool = False,
    num_layers: int = 2,
    dtype: torch.dtype = torch.float32,
    chat_template: bool = True,
    seed: int = 0,
) -> Path:
    """Write a tiny model with its tokenizer into `directory`; the same arguments write the same weights."""
    config = tiny_config(model_type, tied=tied, num_layers=num_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(directory)
    make_tokenizer(chat_template=chat_template).save_pretrained(directory)
    return directory


def tiny_config(model_type: str = "llama", *, tied: bool = False, num_layers: int = 2) -> Any:
    """The configuration of a tiny model: hidden size 64, 4 heads, 2 key-value heads, 512 tokens."""
    special = _special_ids(make_tokenizer())
    shape = {"num_hidden_layers": num_layers, "tie_word_embeddings": tied}
    return AutoConfig.for_model(model_type, **{**_COMMON, **_BY_TYPE[model_type], **special, **shape})


def make_tokenizer(*, chat_template: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 512 tokens, trained on the tiny rows; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=TURN_END, pad_token=END_OF_TEXT
    )
    fast.chat_template = CHAT_TEMPLATE if chat_template else None
    return fast


def make_alpaca_rows(num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose answer follows from the question, so that a tiny model's loss falls within a few dozen steps."""
    chooser = random.Random(seed)
    return [_row(chooser) for _ in range(num_rows)]


def make_alpaca_file(path: Path, num_rows: int = 64, seed: int = 0) -> Path:
    """Write such rows as a JSON array or, where the name ends in .jsonl, a line each."""
    rows = make_alpaca_rows(num_rows, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows, indent=1))
    return path


def _row(chooser: random.Random) -> dict[str, str]:
    subject, colour, count = chooser.choice(_SUBJECTS), chooser.choice(_COLOURS), chooser.randrange(2, 10)
    if chooser.random() < 0.5:
        return {
            "instruction": f"What colour is the {subject} called {colour}?",
            "input": "",
            "output": f"The {subject} called {colour} is {colour}.",
        }
    return {
        "instruction": "Count the animals.",
        "input": " ".join([subject] * count),
        "output": f"There are {count} animals, each a {subject}.",
    }


def _corpus() -> Iterable[str]:
    for row in make_alpaca_rows(256, seed=1):
        yield from (row["instruction"], row["input"], row["output"])
    yield "user\nassistant\nsystem\nBelow is an instruction that describes a task."


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
