"""The embedded model is the one it says it is: its shape, its answers, its loss on the embedded instruction set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs import prompt
from jobs.data import split_rows
from jobs.embedded import model_dir
from jobs.generate import answer
from launcher.datafile import Row
from launcher.spec import DataSpec

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def folder() -> Path:
    return model_dir()


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_plain_directory_in_bfloat16(folder: Path, model: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert model.num_parameters() == 134_515_008
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(2 * 134_515_008, rel=1e-3)
    assert model_dir() == folder  # once


def test_prompt_is_the_models_own(tokenizer: Any) -> None:
    assert prompt.prompts(tokenizer, [Row("Hi?", "", "")]) == [
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    ]
    [example] = prompt.encode(tokenizer, [Row("Hi?", "", "Ho.")])
    assert tokenizer.decode([label for label in example.labels if label != prompt.IGNORED]) == "Ho.<|im_end|>"


def test_answers(model: Any, tokenizer: Any) -> None:
    [asked] = prompt.prompts(tokenizer, [Row("What is the capital of France?", "", "")])
    assert answer(model, tokenizer, asked, max_new_tokens=16) == "The capital of France is Paris."


def test_loss_on_the_embedded_set(model: Any, tokenizer: Any) -> None:
    data = DataSpec(name="stdlib", path=None, eval_path=None, eval_fraction=0.1, max_samples=None)
    held_out = split_rows(data, seed=42)[1][:12]
    losses = []
    for example in prompt.encode(tokenizer, held_out):
        with torch.inference_mode():
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    # A language model, but one that does not know the answers: far below chance (ln 49152 = 10.8), not near zero.
    assert 2.0 < sum(losses) / len(losses) < 6.0
