"""The trace against what real ranks allocate: every cell on two gloo ranks, phase by phase, and at the peak.

benchmarks/cpu_truth.py prints the same comparison for both ranks and both precisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cpu_truth import BOUND, PHASES, RECORDED, Cell, Compared, compare, highest, make_inputs
from launcher.planner.tracing.server import TraceServer
from launcher.spec import MethodKind, Precision, ShardKind
from launcher.units import MIB

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

# fp32 has no casts to hide behind and mixed precision the most: each method and each sharding has both.
CELLS = [
    Cell(method=method, shard=shard, precision=Precision.BF16_MIXED if (row + column) % 2 else Precision.FP32)
    for row, method in enumerate(MethodKind)
    for column, shard in enumerate(ShardKind)
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("cpu-truth")
    make_inputs(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITLAUNCH_CACHE", str(root / "cache"))
        for name, value in RECORDED.items():
            patch.setenv(name, value)
        yield root


@pytest.fixture(scope="module")
def server() -> Iterator[TraceServer]:
    with TraceServer("cpu") as server:
        yield server


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_trace_is_what_a_rank_allocates(cell: Cell, inputs: Path, server: TraceServer) -> None:
    (found,) = compare(inputs, cell, server)
    assert highest(found.real) > 30 * MIB  # a bound in per cent says nothing about a job of nothing
    assert abs(found.error) <= BOUND, shown(found)


def shown(found: Compared) -> str:
    """Every phase of both sides, for the message of a failing test."""
    lines = (f"{phase}: real {found.real[phase]:,}, traced {found.traced[phase]:,}" for phase in PHASES)
    return "\n".join((*lines, f"late: {found.late_bytes:,} in {found.late_phase}"))
