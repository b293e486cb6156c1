"""A model with random weights, a tokenizer and rows to train on: a whole job with nothing from a network.

    python -m jobs.synthetic FOLDER CONFIG

CONFIG is a file with the entries of a transformers config.json, model_type among them. What a job needs of memory does
not depend on what its weights are.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
VOCAB_SIZE = 300  # bytes and a few pairs: any model's vocabulary is larger
NUM_ROWS = 256
WORDS = ("memory", "rank", "shard", "layer", "token", "batch", "node", "bucket")


def write_model(folder: Path, config: dict[str, Any], *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json, safetensors, tokenizer and rows.json into `folder`."""
    rows = make_rows()
    options = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    with torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **options), dtype=dtype)
    model.save_pretrained(folder)
    make_tokenizer(rows).save_pretrained(folder)
    (folder / "rows.json").write_text(json.dumps(rows))


def make_tokenizer(rows: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text for row in rows for text in row.values()), trainer)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_rows() -> list[dict[str, str]]:
    """Alpaca rows of words, the same each time; what they say does not matter."""
    chooser = random.Random(0)  # noqa: S311 - nothing secret hangs on it

    def text(count: int) -> str:
        return " ".join(chooser.choice(WORDS) for _ in range(count))

    return [{"instruction": text(12), "input": "", "output": text(40)} for _ in range(NUM_ROWS)]


def main(arguments: list[str] | None = None) -> int:
    """Write one model."""
    parser = argparse.ArgumentParser(prog="python -m jobs.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("config", type=Path)
    options = parser.parse_args(arguments)
    write_model(options.folder, json.loads(options.config.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
