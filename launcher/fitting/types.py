"""An answer: rows of a table, and more about one job where the question was about one."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planner.types import MemoryPlan, Verdict
from launcher.spec import DeviceSpec, MethodKind, Offload, ShardKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method under one sharding, on the fewest GPUs that hold it, or on as many as were asked for.

    overrides: what to type for it, beside the words of the question. process_bytes and high_bytes: what the worst rank
    needs with the micro batch that was asked for, or else with 1, and at most. micro_batch: what a plan would take.
    largest_micro_batch, longest_sequence and time_ratio are None where it does not fit, or no card is named; time_ratio
    is GPU time for a token beside the quickest row. smallest_card is None unless no card is named.
    """

    method: MethodKind
    shard: ShardKind
    offload: Offload
    gpus_per_node: int
    nodes: int
    overrides: tuple[str, ...]
    process_bytes: int
    high_bytes: int
    host_ram_bytes_per_node: int
    verdict: Verdict
    micro_batch: int
    largest_micro_batch: int | None
    longest_sequence: int | None
    time_ratio: float | None
    smallest_card: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Rows that cannot be, and why."""

    overrides: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The one job that a question names: its plan, as launch.py mode=plan makes it, and what it would take elsewhere.

    fewest_gpus: of this card in one node; None where even eight do not hold it. cards: the smallest listed card for 1,
    2, 4 and 8 of them in a node, as 'a100-80g x 2'.
    """

    plan: MemoryPlan
    fewest_gpus: int | None
    cards: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Everything that is known about a question. job is None where it leaves the method or the sharding open."""

    words: tuple[str, ...]
    model: str
    num_parameters: int
    device: DeviceSpec
    sequence_length: int
    global_batch: int
    rows: tuple[Row, ...]
    refused: tuple[Refusal, ...]
    job: Job | None

    @property
    def something_fits(self) -> bool:
        """Whether there is a row to run, or no card to hold it against."""
        return any(row.verdict is not Verdict.DOES_NOT_FIT for row in self.rows)
