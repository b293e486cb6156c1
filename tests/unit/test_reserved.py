"""What plans add for torch's default segments is what the project's own jobs reserve in them."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest

from benchmarks.reserved import TORCHS_DEFAULT, jobs, percents
from launcher.planner.verdict import DEFAULT_SEGMENTS_PERCENT
from launcher.spec import ActivationCheckpointing


def test_the_table_has_the_medians() -> None:
    found: defaultdict[tuple[bool, bool], list[float]] = defaultdict(list)
    for spec in jobs():
        is_checkpointed = spec.train.activation_checkpointing is not ActivationCheckpointing.NONE
        found[is_checkpointed, spec.gradient_accumulation > 1] += percents(spec, [TORCHS_DEFAULT]).values()
    medians = {key: statistics.median(values) for key, values in found.items()}
    assert medians == pytest.approx(DEFAULT_SEGMENTS_PERCENT, abs=0.6)
