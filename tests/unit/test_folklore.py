"""The sayings beside the plan: every figure that was said stands there, and every explanation adds up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sayings.ablation import ABLATION, BASE_GB, EIGHT, MICRO_BATCH_16_GB, ablation_job, ablation_length
from benchmarks.sayings.planned import GB, difference, estimate, kinds, training_bytes
from benchmarks.sayings.rules import checkpointing_rule, full_rule, optimizer_rule
from benchmarks.sayings.usual import USUAL, USUAL_LENGTHS

ROOT = Path(__file__).parents[2]


def test_one_part_is_printed_by_its_command() -> None:
    """As a user runs it: each row of the usual table has what is said, three plans, and a line of its own."""
    command = (sys.executable, str(ROOT / "benchmarks" / "folklore.py"), "--part", "table")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    for name, _, said, _ in USUAL:
        (row,) = (line for line in done.stdout.splitlines() if re.match(rf" {name} +{said} ", line))
        assert len(re.findall(r"\d+\.\d", row)) == len(USUAL_LENGTHS)
        assert f"  {name}: " in done.stdout


def test_only_the_length_is_taken_from_the_ablation() -> None:
    length = ablation_length()
    said = MICRO_BATCH_16_GB - BASE_GB

    def growth_gb(tokens: int) -> float:
        small, large = (estimate(ablation_job(tokens, *EIGHT, f"train.micro_batch={size}")) for size in (2, 16))
        return 8 * (training_bytes(large) - training_bytes(small)) / GB

    assert growth_gb(length) <= said < growth_gb(length + 1)


@pytest.mark.parametrize(("name", "said", "changes"), ABLATION, ids=lambda value: str(value))
def test_kinds_add_up_to_the_process(name: str, said: float, changes: tuple[str, ...]) -> None:
    found = estimate(ablation_job(512, *changes))
    assert sum(kinds(found).values()) == found.need.process_bytes
    base = estimate(ablation_job(512, *EIGHT))
    grown = training_bytes(found) - training_bytes(base)
    assert sum(difference(found, base).values()) == grown
    assert training_bytes(found) <= found.need.process_bytes


def test_recorded_output_has_every_saying() -> None:
    recorded = (ROOT / "benchmarks" / "results" / "folklore.txt").read_text()
    for name, said, _ in ABLATION:
        assert re.search(rf"^ {re.escape(name)} +{said:.2f} ", recorded, re.MULTILINE), name
        assert f"  {name}: " in recorded
    for rule in (full_rule, optimizer_rule, checkpointing_rule):
        said, _ = rule()
        assert said in recorded
