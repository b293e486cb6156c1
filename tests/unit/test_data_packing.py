"""Packing and padding: nothing leaks between samples, and no mask is needed for padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from jobs import packing, prompt
from jobs.collate import Collator
from jobs.prompt import IGNORED, Example
from launcher.datafile import Row
from tests.tiny import MODEL_TYPES, make_alpaca_rows, make_tiny_model, make_tokenizer

CAPACITY = 96
# Gemma 2 soft-caps its attention, which transformers does with eager alone.
KINDS = [(kind, "sdpa") for kind in MODEL_TYPES if kind != "gemma2"] + [("gemma2", "eager"), ("llama", "eager")]


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 80))
def test_every_sample_is_packed_once_and_fits(lengths: list[int], capacity: int) -> None:
    packs = packing.assign(lengths, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= capacity for pack in packs)
    # Best fit never leaves two packs that would go into one.
    fill = sorted(sum(lengths[index] for index in pack) for pack in packs)
    assert len(fill) < 2 or fill[0] + fill[1] > capacity


def test_best_fit() -> None:
    assert packing.assign([5, 4, 3, 3, 2, 1], 6) == [[0, 5], [1, 4], [2, 3]]


def test_join_starts_each_sample_anew() -> None:
    first, second = Example([1, 2, 3], [IGNORED, 2, 3]), Example([4, 5], [4, 5])
    assert packing.join([first, second]) == packing.Pack([1, 2, 3, 4, 5], [IGNORED, 2, 3, IGNORED, 5], [0, 1, 2, 0, 1])


def test_collator_pads_without_a_mask() -> None:
    batch = Collator(pad_id=9, max_length=100, multiple=4)(
        [{"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORED, IGNORED, 3, 4, 5]}, {"input_ids": [6], "labels": [6]}]
    )
    ignored = [IGNORED] * 7
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5, 9, 9, 9], [6, 9, 9, 9, 9, 9, 9, 9]],
        "labels": [[IGNORED, IGNORED, 3, 4, 5, *ignored[:3]], [6, *ignored]],
    }


def test_collator_rounds_up_no_further_than_the_sequence_length() -> None:
    rows = [{"input_ids": [1] * 9, "labels": [1] * 9}]
    assert Collator(pad_id=0, max_length=10)(rows)["input_ids"].shape == (1, 10)
    assert Collator(pad_id=0, max_length=9)(rows)["input_ids"].shape == (1, 9)


def test_collator_keeps_packs_apart() -> None:
    packs = [
        {"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3], "position_ids": [0, 1, 0]},
        {"input_ids": [4], "labels": [IGNORED], "position_ids": [0]},
    ]
    padded = Collator(pad_id=9, max_length=8, multiple=4)(packs)
    assert padded["position_ids"].tolist() == [[0, 1, 0, 0], [0, 0, 1, 2]]
    assert "attention_mask" not in padded
    flat = Collator(pad_id=9, max_length=8, flatten=True)(packs)
    assert {name: tensor.tolist() for name, tensor in flat.items()} == {
        "input_ids": [[1, 2, 3, 4]],
        "labels": [[IGNORED, 2, 3, IGNORED]],
        "position_ids": [[0, 1, 0, 0]],
    }


def examples(num_rows: int) -> list[Example]:
    return prompt.encode(make_tokenizer(), [Row(**row) for row in make_alpaca_rows(num_rows, seed=3)])


def load(folder: Path, model_type: str, attention: str):
    make_tiny_model(folder, model_type)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()
    model.config.use_cache = False
    return model


@pytest.mark.parametrize(("model_type", "attention"), KINDS)
def test_packed_logits_and_loss_equal_unpacked(tmp_path: Path, model_type: str, attention: str) -> None:
    model = load(tmp_path, model_type, attention)
    samples = examples(12)
    lengths = [len(sample.input_ids) for sample in samples]
    members = packing.assign(lengths, CAPACITY)
    assert len(members) < len(samples) / 2
    packs = [packing.join([samples[index] for index in pack]) for pack in members]
    columns = [{"input_ids": p.input_ids, "labels": p.labels, "position_ids": p.position_ids} for p in packs]
    batch = Collator(pad_id=0, max_length=CAPACITY)(columns)
    loss_sum, num_learned = 0.0, 0
    with torch.no_grad():
        together = model(**batch)
        for row, pack in enumerate(members):
            start = 0
            for index in pack:
                ids, labels = (torch.tensor([values]) for values in (samples[index].input_ids, samples[index].labels))
                alone = model(input_ids=ids, labels=labels)
                logits = together.logits[row, start : start + lengths[index]]
                torch.testing.assert_close(logits, alone.logits[0], atol=2e-5, rtol=1e-4)
                loss_sum += float(alone.loss) * samples[index].num_learned
                num_learned += samples[index].num_learned
                start += lengths[index]
    assert float(together.loss) == pytest.approx(loss_sum / num_learned, abs=1e-5)


def test_an_attention_mask_would_leak(tmp_path: Path) -> None:
    """What the collator must not do: with a mask of ones, samples see the ones before them."""
    model = load(tmp_path, "llama", "sdpa")
    pack = packing.join(examples(2))
    batch = {"input_ids": torch.tensor([pack.input_ids]), "position_ids": torch.tensor([pack.position_ids])}
    with torch.no_grad():
        apart = model(**batch).logits
        leaking = model(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits
    assert (apart - leaking).abs().max() > 1e-3


@pytest.mark.parametrize(("model_type", "attention"), KINDS)
def test_padding_needs_no_mask(tmp_path: Path, model_type: str, attention: str) -> None:
    model = load(tmp_path, model_type, attention)
    samples = examples(4)
    batch = Collator(pad_id=0, max_length=CAPACITY)(
        [{"input_ids": sample.input_ids, "labels": sample.labels} for sample in samples]
    )
    mask = torch.zeros_like(batch["input_ids"])
    for row, sample in enumerate(samples):
        mask[row, : len(sample.input_ids)] = 1
    with torch.no_grad():
        without, masked = model(**batch), model(**batch, attention_mask=mask)
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        torch.testing.assert_close(without.logits[row, :length], masked.logits[row, :length], atol=2e-5, rtol=1e-4)
    assert float(without.loss) == pytest.approx(float(masked.loss), abs=1e-5)
