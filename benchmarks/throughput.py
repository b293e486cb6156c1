"""How many plans one process makes, and whether a plan's cost depends on the number of ranks:
`python benchmarks/throughput.py [--plans N]`.

Plans as a sweep makes them: the memory and the verdict, no search for what would fit instead. Every plan is another
job: each model, method and sharding is composed once, then sequences and micro batches vary.
The same jobs are planned on 8 and on 1,024 ranks; quote the ratio of the two.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence

import hydra
from hydra.core.config_store import ConfigStore
from rich.console import Console
from rich.progress import track
from rich.table import Table

from launcher.compose import make_spec, plain
from launcher.devices import listed_devices
from launcher.host import detect_host
from launcher.paths import conf_dir
from launcher.planner.plan import make_plan
from launcher.schema import JobConf
from launcher.spec import JobSpec

MODELS = ("llama3-8b", "qwen2.5-7b", "mixtral-8x7b")
METHODS = ("full", "lora", "qlora")
SHARDS = ("ddp", "fsdp", "zero2", "zero3")
SEQUENCES = (512, 1024, 2048, 4096, 8192)
MICRO_BATCHES = (1, 2, 4, 8)
NUM_NODES = {"8 ranks": 1, "1,024 ranks": 128}
GLOBAL_BATCH = 8 * 1024


def composed(nodes: int) -> list[JobSpec]:
    """One job of each model, method and sharding on `nodes` nodes of eight H100."""
    host = detect_host()
    ConfigStore.instance().store(name="job_schema", node=JobConf)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return [
            make_spec(
                plain(
                    hydra.compose(
                        config_name="config",
                        overrides=[
                            f"model={model}", f"method={method}", f"shard={shard}", f"nodes={nodes}", "gpus=8",
                            "mode=plan", "cluster=slurm", "device=h100-80g", f"train.global_batch={GLOBAL_BATCH}",
                        ],
                    )
                ),
                host,
            )
            for model, method, shard in itertools.product(MODELS, METHODS, SHARDS)
        ]  # fmt: skip


def varied(jobs: Sequence[JobSpec], count: int) -> Iterator[JobSpec]:
    """`count` jobs: those given, in other lengths and micro batches."""
    combinations = itertools.product(SEQUENCES, MICRO_BATCHES, jobs)
    for sequence_length, micro_batch, job in itertools.islice(itertools.cycle(combinations), count):
        train = dataclasses.replace(job.train, sequence_length=sequence_length, micro_batch=micro_batch)
        yield dataclasses.replace(job, train=train)


def main() -> None:
    """Time the plans and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--plans", type=int, default=10_000)
    num_plans = parser.parse_args().plans
    cards = listed_devices()
    times_s = {}
    for name, nodes in NUM_NODES.items():
        jobs = list(varied(composed(nodes), num_plans))
        start = time.perf_counter()
        for job in track(jobs, description=name, console=Console(stderr=True)):
            make_plan(job, cards, propose=False)
        times_s[name] = time.perf_counter() - start
    table = Table("ranks", "plans", "s", "ms a plan", box=None)
    for name, elapsed in times_s.items():
        table.add_row(name, f"{num_plans:,}", f"{elapsed:.2f}", f"{elapsed / num_plans * 1e3:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
