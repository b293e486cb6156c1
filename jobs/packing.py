"""Several samples in one sequence: which go together, and how they are kept apart.

Samples are kept apart by position_ids that start again at 0 and by the absence of an attention mask: from these
transformers builds a block-diagonal mask, or variable-length flash attention. An attention mask of ones would
let every sample see the ones before it, and so would a model with use_cache on (transformers 5.23, masking_utils.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.prompt import IGNORED, Example


@dataclass(frozen=True, slots=True)
class Pack:
    """Samples one after the other. position_ids count from 0 in each."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]


def assign(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing: the indices of the samples in each pack, longest samples first.

    Each sample goes into the fullest pack that still has room for it. No length may exceed `capacity`.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        assert length <= capacity, f"sample {index} has {length} tokens, more than {capacity}"
        place = bisect_left(room, (length, -1))
        if place == len(room):
            free, pack = capacity, len(packs)
            packs.append([])
        else:
            free, pack = room.pop(place)
        packs[pack].append(index)
        if free > length:
            insort(room, (free - length, pack))
    return packs


def join(examples: Sequence[Example]) -> Pack:
    """Put samples one after the other. The first token of each is never predicted from the sample before it."""
    pack = Pack([], [], [])
    for example in examples:
        pack.input_ids.extend(example.input_ids)
        pack.labels.extend([IGNORED, *example.labels[1:]])
        pack.position_ids.extend(range(len(example.input_ids)))
    return pack
