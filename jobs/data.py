"""The training data of a job: rows split, tokenised, masked, cut, packed, and kept in the cache as Arrow files.

The cache entry's name is the digest of everything that decides its content. One rank builds it and the others
wait, then all of them map the same files into memory; every rank therefore has the same data in the same order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from jobs import packing, prompt, stdlib_data
from jobs.cache import build_once, cache_dir
from jobs.collate import Collator
from jobs.prompt import IGNORED, Example
from launcher.datafile import Row, read_rows
from launcher.spec import Attention, DataSpec, JobSpec

# Part of every digest: raise it when the same rows shall become other tokens.
FORMAT = 1
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the rows.

    num_train, num_eval: samples that are trained on and held out; packed samples are counted one by one.
    num_truncated: of these, the samples cut to the sequence length. num_dropped: rows left out because nothing of
    their answer was left after the cut, or because it was empty.
    num_train_tokens, num_learned_tokens: tokens in the training samples, and those of them that carry a loss.
    """

    num_train: int
    num_eval: int
    num_truncated: int
    num_dropped: int
    num_train_tokens: int
    num_learned_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What the Trainer needs. Columns: input_ids, labels, and position_ids where samples are packed.

    eval is None where nothing is held out. It is never packed, so that its loss does not depend on packing, and its
    longest rows come first.
    """

    train: Dataset
    eval: Dataset | None
    collator: Collator
    counts: Counts
    has_template: bool

    @property
    def num_train(self) -> int:
        return self.counts.num_train

    @property
    def num_eval(self) -> int:
        return self.counts.num_eval

    @property
    def num_truncated(self) -> int:
        return self.counts.num_truncated

    @property
    def num_dropped(self) -> int:
        return self.counts.num_dropped


def load_data(spec: JobSpec, tokenizer: Any) -> Data:
    """Build the job's data, or find it in the cache. ValueError says what is wrong with a file, for its owner."""
    path = data_path(spec.data)
    entry = cache_dir() / "tokens" / _digest(spec, tokenizer, path)
    build_once(entry, lambda folder: _build(folder, spec, tokenizer))
    held_out = entry / "eval.arrow"
    return Data(
        train=Dataset.from_file(str(entry / "train.arrow")),
        eval=Dataset.from_file(str(held_out)) if held_out.exists() else None,
        collator=make_collator(spec, tokenizer),
        counts=msgspec.json.decode((entry / "counts.json").read_bytes(), type=Counts),
        has_template=prompt.has_template(tokenizer),
    )


def data_path(data: DataSpec) -> Path:
    """The file the rows come from: the user's own, or the embedded set, which is built if need be."""
    return stdlib_data.data_file() if data.path is None else Path(data.path)


def make_collator(spec: JobSpec, tokenizer: Any) -> Collator:
    """The collator that fits the job's attention and length. Padding is never learned, so any token will do for it."""
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    flatten = spec.train.attention is Attention.FLASH_ATTENTION_2
    return Collator(pad_id=pad_id, max_length=spec.train.sequence_length, flatten=flatten)


def split_rows(data: DataSpec, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train on and the rows held out; decided by file and seed alone.

    max_samples limits the rows of `path` before the split. At least one row is trained on, and at least one is
    held out unless eval_fraction is 0.
    """
    rows = read_rows(data_path(data))
    random.Random(seed).shuffle(rows)  # noqa: S311 - a split, not a secret
    rows = rows[: data.max_samples]
    if data.eval_path is not None:
        return rows, read_rows(Path(data.eval_path))
    if data.eval_fraction == 0 or len(rows) == 1:
        return rows, []
    num_eval = min(max(1, round(len(rows) * data.eval_fraction)), len(rows) - 1)
    return rows[num_eval:], rows[:num_eval]


def first_example(data: Data, tokenizer: Any) -> str:
    """The first training sample as text, with what is learned between ⟦ and ⟧."""
    example = data.train[0]
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        learned = label != IGNORED
        if not runs or runs[-1][0] != learned:
            runs.append((learned, []))
        runs[-1][1].append(token)
    texts = ((learned, tokenizer.decode(tokens)) for learned, tokens in runs)
    return "".join(f"⟦{text}⟧" if learned else text for learned, text in texts)


def _digest(spec: JobSpec, tokenizer: Any, path: Path) -> str:
    hasher = hashlib.sha256()
    for file in (path, spec.data.eval_path):
        hasher.update(b"" if file is None else hashlib.sha256(Path(file).read_bytes()).digest())
    decides = {
        "format": FORMAT,
        "tokenizer": _tokenizer_digest(tokenizer),
        "sequence_length": spec.train.sequence_length,
        "packing": spec.train.packing,
        "seed": spec.train.seed,
        "eval_fraction": spec.data.eval_fraction,
        "max_samples": spec.data.max_samples,
    }
    hasher.update(msgspec.json.encode(decides))
    return hasher.hexdigest()[:32]


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    parts = (vocabulary, tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _build(folder: Path, spec: JobSpec, tokenizer: Any) -> None:
    length, packed = spec.train.sequence_length, spec.train.packing
    train_rows, eval_rows = split_rows(spec.data, spec.train.seed)
    train, train_cut = _cut(_encode(tokenizer, train_rows), length)
    held_out, eval_cut = _cut(_encode(tokenizer, eval_rows), length)
    held_out.sort(key=lambda example: -len(example.input_ids))  # rows of like length share a batch: little padding
    if not train:
        raise ValueError(
            f"none of the {len(train_rows)} training rows has any of its answer within "
            f"train.sequence_length={length}: raise it"
        )
    folder.mkdir()
    _write(folder / "train.arrow", (asdict(p) for p in _pack(train, length)) if packed else map(asdict, train))
    if held_out:
        _write(folder / "eval.arrow", map(asdict, held_out))
    counts = Counts(
        num_train=len(train),
        num_eval=len(held_out),
        num_truncated=train_cut + eval_cut,
        num_dropped=len(train_rows) - len(train) + len(eval_rows) - len(held_out),
        num_train_tokens=sum(len(example.input_ids) for example in train),
        num_learned_tokens=sum(example.num_learned for example in train),
    )
    (folder / "counts.json").write_bytes(msgspec.json.encode(counts))


def _encode(tokenizer: Any, rows: Sequence[Row]) -> Iterator[Example]:
    answered = [row for row in rows if row.output.strip()]
    for start in range(0, len(answered), ROWS_AT_ONCE):
        yield from prompt.encode(tokenizer, answered[start : start + ROWS_AT_ONCE])


def _cut(examples: Iterable[Example], length: int) -> tuple[list[Example], int]:
    """Cut examples to `length` tokens and leave out those with nothing left to learn; and how many were cut."""
    kept: list[Example] = []
    num_cut = 0
    for example in examples:
        cut = Example(example.input_ids[:length], example.labels[:length])
        if cut.num_learned:
            kept.append(cut)
            num_cut += len(example.input_ids) > length
    return kept, num_cut


def _pack(examples: Sequence[Example], capacity: int) -> Iterator[packing.Pack]:
    lengths = [len(example.input_ids) for example in examples]
    for members in packing.assign(lengths, capacity):
        yield packing.join([examples[index] for index in members])


def _write(path: Path, examples: Iterable[dict[str, list[int]]]) -> None:
    writer: ArrowWriter | None = None
    for example in examples:
        if writer is None:
            writer = ArrowWriter(path=str(path), features=Features({key: List(Value("int32")) for key in example}))
        writer.write(example)
    assert writer is not None
    writer.finalize()
