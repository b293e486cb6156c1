"""From examples to a batch. There is no attention mask in it, and none is needed.

Padding stands on the right: under causal attention no real token ever looks at it, and its labels are ignored. So the
logits of real tokens are those of a masked batch, while torch can take its fastest kernels and no mask of
sequence x sequence is held. Packed samples are kept apart by their position_ids, which a mask would override.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.prompt import IGNORED
from launcher.units import round_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Pads to the longest example, rounded up to a multiple of `multiple`, never beyond `max_length` for that alone.

    Examples with position_ids are packs. flatten puts all packs of a batch into one sequence, which is the only
    form in which flash attention 2 keeps samples apart (transformers 5.23, _is_packed_sequence).
    """

    pad_id: int
    max_length: int
    multiple: int = 8
    flatten: bool = False

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        packed = "position_ids" in examples[0]
        if packed and self.flatten:
            return _to_tensors([_concatenate(examples)])
        longest = max(len(example["input_ids"]) for example in examples)
        length = max(longest, min(round_up(longest, self.multiple), self.max_length))
        return _to_tensors([self._pad(example, length, packed) for example in examples])

    def _pad(self, example: dict[str, Any], length: int, packed: bool) -> dict[str, list[int]]:
        missing = length - len(example["input_ids"])
        padded = {
            "input_ids": [*example["input_ids"], *[self.pad_id] * missing],
            "labels": [*example["labels"], *[IGNORED] * missing],
        }
        if packed:
            padded["position_ids"] = [*example["position_ids"], *range(missing)]
        return padded


def _concatenate(examples: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    keys = ("input_ids", "labels", "position_ids")
    return {key: [value for example in examples for value in example[key]] for key in keys}


def _to_tensors(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows], dtype=torch.long) for key in rows[0]}
