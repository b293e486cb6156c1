"""What plans add for what the allocator reserves is what the project's own jobs reserve."""

from __future__ import annotations

import statistics
from collections import defaultdict

import pytest

from benchmarks.reserved import TORCHS_DEFAULT, jobs, percents
from benchmarks.reserved_sharded import read
from launcher.planner.verdict import DEFAULT_SEGMENTS_PERCENT, RESERVED_PERCENT, SURVIVAL_PERCENT
from launcher.spec import ActivationCheckpointing, ShardKind


def test_the_table_has_the_medians() -> None:
    found: defaultdict[tuple[bool, bool], list[float]] = defaultdict(list)
    for spec in jobs():
        is_checkpointed = spec.train.activation_checkpointing is not ActivationCheckpointing.NONE
        found[is_checkpointed, spec.gradient_accumulation > 1] += percents(spec, [TORCHS_DEFAULT]).values()
    medians = {key: statistics.median(values) for key, values in found.items()}
    assert medians == pytest.approx(DEFAULT_SEGMENTS_PERCENT, abs=0.6)


@pytest.mark.parametrize("shard", ShardKind)
def test_traced_jobs_of_every_sharding_reserve_and_survive_as_planned(shard: ShardKind) -> None:
    found = [one for one in read().values() if one.shard is shard]
    assert len(found) == 24
    assert max(one.least_percent for one in found) <= SURVIVAL_PERCENT[shard]
    if shard is not ShardKind.ZERO3:  # whose percentage is that of measured processes
        assert statistics.median(one.reserved_percent for one in found) == pytest.approx(RESERVED_PERCENT[shard], abs=2)
