"""What the caching allocator reserves over what a plan says is allocated: `python -m benchmarks.reserved`.

The streams of the project's own jobs (launcher/planner/stream) go through the allocator's replay, with expandable
segments, which the job asks for, and with torch's default. launcher/planner/verdict.py takes the medians of one rank
from here: no measurement is among them.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.scoring.score import training_part
from launcher.planner.allocator import replay
from launcher.planner.stream import events
from launcher.spec import JobSpec
from tests.planner_jobs import estimate, job, model_config

MODELS = ("qwen2.5-0.5b", "llama3.2-1b", "qwen2.5-1.5b", "llama3.2-3b", "qwen2.5-7b", "llama3-8b")
METHODS = ("full", "lora", "qlora")
CHECKPOINTING = ("none", "full")
SEQUENCES = (1024, 4096)
ACCUMULATION = (1, 2)
TORCHS_DEFAULT = "torch's default"
SEGMENTS = {"expandable": True, TORCHS_DEFAULT: False}


def jobs() -> Iterator[JobSpec]:
    """144 on one rank."""
    for model, method, checkpointing, length, accumulation in itertools.product(
        MODELS, METHODS, CHECKPOINTING, SEQUENCES, ACCUMULATION
    ):
        yield job(
            model_config(model),
            method=method,
            checkpointing=checkpointing,
            sequence_length=length,
            micro_batch=1,
            global_batch=accumulation,
        )


def percents(spec: JobSpec, segments: Iterable[str] = tuple(SEGMENTS)) -> dict[str, float]:
    """Reserved over allocated in training, by the allocator's segments; without any limit."""
    found = estimate(spec)
    allocated = max(training_part(rank).allocated_bytes for rank in found.ranks)
    stream = events(found.work)
    return {name: 100 * replay(stream, expandable=SEGMENTS[name]).peak_reserved_bytes / allocated for name in segments}


def main() -> None:
    """Replay, and print a table."""
    found: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for spec in track(list(jobs()), "replaying", console=Console(stderr=True), transient=True):
        for segments, percent in percents(spec).items():
            for key in ("any", spec.train.activation_checkpointing.value):
                for accumulation in ("any", str(spec.gradient_accumulation)):
                    found[segments, key, accumulation].append(percent)
    table = Table("segments", "checkpointing", "accumulation", "jobs", "median", "low", "high", box=None)
    for key, values in sorted(found.items()):
        figures = (f"{value:.1f} %" for value in (statistics.median(values), min(values), max(values)))
        table.add_row(*key, str(len(values)), *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
