"""jobs.data: the split, what is cut and dropped, the cache, and the packed form of the same rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import data
from jobs.data import Counts, load_data, split_rows
from jobs.prompt import IGNORED
from launcher.spec import Attention, DataSpec, JobSpec
from tests.ranks import make_spec
from tests.tiny import make_alpaca_file, make_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FITLAUNCH_CACHE", str(folder))
    return folder


def job(tmp_path: Path, file: Path, *, data: dict[str, Any] | None = None, **train: Any) -> JobSpec:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    spec = make_spec(model, file, **train)
    return dataclasses.replace(spec, data=dataclasses.replace(spec.data, **(data or {})))


def write_rows(path: Path, *outputs: str) -> Path:
    path.write_text(json.dumps([{"instruction": "Go", "output": output} for output in outputs]))
    return path


def test_counts_and_columns(tmp_path: Path) -> None:
    loaded = load_data(job(tmp_path, make_alpaca_file(tmp_path / "a.jsonl", 40)), make_tokenizer())
    assert (loaded.num_train, loaded.num_eval, loaded.num_truncated, loaded.num_dropped) == (34, 6, 0, 0)
    assert (len(loaded.train), len(loaded.eval)) == (34, 6)
    assert loaded.train.column_names == ["input_ids", "labels"]
    assert loaded.counts.num_train_tokens == sum(map(len, loaded.train["input_ids"]))
    assert loaded.counts.num_learned_tokens == sum(x != IGNORED for row in loaded.train["labels"] for x in row)
    lengths = [len(ids) for ids in loaded.eval["input_ids"]]
    assert lengths == sorted(lengths, reverse=True)


def test_split_is_decided_by_file_and_seed(tmp_path: Path) -> None:
    spec = DataSpec(
        name="x",
        path=str(make_alpaca_file(tmp_path / "a.json", 30)),
        eval_path=None,
        eval_fraction=0.2,
        max_samples=None,
    )
    train, held_out = split_rows(spec, seed=1)
    assert (len(train), len(held_out)) == (24, 6)
    assert split_rows(spec, seed=1) == (train, held_out)
    assert split_rows(spec, seed=2) != (train, held_out)
    limited = split_rows(dataclasses.replace(spec, max_samples=5), seed=1)
    assert limited == ((held_out + train)[1:5], held_out[:1])
    assert split_rows(dataclasses.replace(spec, eval_fraction=0.0), seed=1) == (held_out + train, [])
    one = dataclasses.replace(spec, max_samples=1)
    assert split_rows(one, seed=1) == (held_out[:1], [])
    apart = dataclasses.replace(spec, eval_path=str(make_alpaca_file(tmp_path / "b.json", 3, seed=9)))
    assert tuple(map(len, split_rows(apart, seed=1))) == (30, 3)


def test_cut_and_dropped_rows_are_counted(tmp_path: Path) -> None:
    # The prompt takes 10 tokens. Answers: whole, cut, empty.
    tokenizer = make_tokenizer()
    file = write_rows(tmp_path / "a.json", "ab", "abcdefgh", " ")
    spec = job(tmp_path, file, data={"eval_fraction": 0.0}, sequence_length=14)
    loaded = load_data(spec, tokenizer)
    assert loaded.counts == Counts(
        num_train=2, num_eval=0, num_truncated=1, num_dropped=1, num_train_tokens=27, num_learned_tokens=7
    )
    assert loaded.eval is None
    assert sorted(map(len, loaded.train["input_ids"])) == [13, 14]
    with pytest.raises(ValueError, match=r"^none of the 3 training rows .* train\.sequence_length=10: raise it$"):
        load_data(dataclasses.replace(spec, train=dataclasses.replace(spec.train, sequence_length=10)), tokenizer)


def test_packing_keeps_every_token_and_label(tmp_path: Path) -> None:
    file, tokenizer = make_alpaca_file(tmp_path / "a.json", 40), make_tokenizer()
    plain = load_data(job(tmp_path, file), tokenizer)
    packed = load_data(job(tmp_path, file, packing=True), tokenizer)
    assert packed.counts == plain.counts
    assert packed.train.column_names == ["input_ids", "labels", "position_ids"]
    assert packed.eval["input_ids"] == plain.eval["input_ids"]
    assert len(packed.train) < len(plain.train) / 2
    assert max(map(len, packed.train["input_ids"])) <= 96
    samples = []
    for pack in packed.train:
        starts = [index for index, position in enumerate(pack["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            samples.append((pack["input_ids"][start:end], pack["labels"][start:end]))
    assert sorted(samples) == sorted(zip(plain.train["input_ids"], plain.train["labels"], strict=True))


def test_built_once_and_again_when_anything_that_decides_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    build = data._build
    monkeypatch.setattr(data, "_build", lambda folder, *rest: (built.append(folder), build(folder, *rest)))
    file, tokenizer = make_alpaca_file(tmp_path / "a.json", 20), make_tokenizer()
    load_data(job(tmp_path, file), tokenizer)
    load_data(job(tmp_path, file, learning_rate=1.0), tokenizer)  # decides nothing here
    assert len(built) == 1
    load_data(job(tmp_path, file, sequence_length=64), tokenizer)
    load_data(job(tmp_path, file, packing=True), tokenizer)
    load_data(job(tmp_path, file, seed=99), tokenizer)
    load_data(job(tmp_path, file, data={"eval_fraction": 0.3}), tokenizer)
    load_data(job(tmp_path, file, data={"max_samples": 9}), tokenizer)
    load_data(job(tmp_path, file), make_tokenizer(chat_template=False))
    load_data(job(tmp_path, make_alpaca_file(file, 21)), tokenizer)
    assert len(built) == 8
    assert [path for path in (cache / "tokens").iterdir() if path.name.startswith(".")] == []  # no lock, no part


def test_first_example_shows_what_is_learned(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": "Say hello.", "output": "Hello."}]))
    tokenizer = make_tokenizer()
    loaded = load_data(job(tmp_path, file), tokenizer)
    assert data.first_example(loaded, tokenizer) == (
        "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧"
    )


def test_flash_attention_takes_packs_in_one_sequence(tmp_path: Path) -> None:
    file = make_alpaca_file(tmp_path / "a.json", 20)
    assert not data.make_collator(job(tmp_path, file), make_tokenizer()).flatten
    assert data.make_collator(job(tmp_path, file, attention=Attention.FLASH_ATTENTION_2), make_tokenizer()).flatten


def test_a_bad_file_is_told_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('[{"instruction": "a"}]')
    with pytest.raises(ValueError, match=rf"^{file}: row 1 has no 'output'"):
        load_data(job(tmp_path, file), make_tokenizer())
