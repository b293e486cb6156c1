"""The jobs of the grid: every cell with every architecture, and around three of them what else changes memory.

Widths are those of real models; layers are few, so that a trace takes seconds and no term hides behind the weights of
eighty blocks. Some whole models are among them. Liger's loss is not: its kernel is Triton's and runs on a GPU alone, so
that what is planned for it is held against published measurements (benchmarks/accuracy.py) and against no trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from launcher.spec import JobSpec, MethodKind, ShardKind
from tests.planner_jobs import job, model_config

ARCHITECTURES = (
    "llama3-8b",
    "mistral-7b",
    "qwen2.5-7b",
    "qwen3-8b",
    "phi3-mini",
    "gemma2-2b",
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "llama3.2-1b",
    "qwen2.5-0.5b",
)
METHODS = tuple(MethodKind)
SHARDS = tuple(ShardKind)
# What goes round with the cells, so that none of it is tied to one architecture.
SHAPES = ((1, 2048), (2, 1024), (4, 512), (1, 4096))
WORLDS = (8, 2, 4, 16)
LAYERS = 2
EAGER = ("gemma2-2b", "gemma2-9b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One job of the grid: a model, cut to so many layers where that is said, and the options that differ."""

    model: str
    layers: int | None
    method: MethodKind
    shard: ShardKind
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For people: 'llama3-8b/3 lora fsdp gpus=8 ...'."""
        size = "" if self.layers is None else f"/{self.layers}"
        options = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.model}{size} {self.method} {self.shard} {options}"

    def spec(self) -> JobSpec:
        """The job."""
        config = dict(model_config(self.model))
        if self.layers is not None:
            config["num_hidden_layers"] = self.layers
        options = {"gpus": 1, "micro_batch": 1, "accumulation": 1} | self.options
        gpus, accumulation = options["gpus"], options.pop("accumulation")
        nodes = max(1, gpus // 8)
        return job(
            config,
            method=self.method,
            shard=self.shard,
            **options
            | {"gpus": min(gpus, 8), "nodes": nodes, "global_batch": gpus * options["micro_batch"] * accumulation},
        )


def grid() -> tuple[Case, ...]:
    """All of it, each job once."""
    found = {case.name: case for case in (*_cells(), *_around(), *_whole_models())}
    return tuple(found.values())


def _cells() -> Iterator[Case]:
    """Every architecture x method x sharding."""
    number = 0
    for model in ARCHITECTURES:
        for method in METHODS:
            for shard in SHARDS:
                micro_batch, length = SHAPES[number % len(SHAPES)]
                yield Case(
                    model=model,
                    layers=LAYERS,
                    method=method,
                    shard=shard,
                    options={
                        "gpus": WORLDS[(number // 3) % len(WORLDS)],
                        "micro_batch": micro_batch,
                        "sequence_length": length,
                        "checkpointing": "none" if number % 5 == 0 else "full",
                        **({"attention": "eager"} if model in EAGER else {}),
                    },
                )
                number += 1


def _around() -> Iterator[Case]:
    """One thing at a time, for three architectures that differ in their heads."""
    usual = {"gpus": 8, "micro_batch": 1, "sequence_length": 2048}
    for number, model in enumerate(("llama3-8b", "qwen2.5-1.5b", "qwen3-4b")):
        for method in METHODS:
            for shard in SHARDS:
                for options in _variants(method, shard, number):
                    yield Case(model=model, layers=LAYERS, method=method, shard=shard, options={**usual, **options})


def _variants(method: MethodKind, shard: ShardKind, number: int) -> Iterator[dict[str, Any]]:
    """A third of what there is for each architecture."""
    wanted: list[dict[str, Any]] = [
        {"checkpointing": "none", "micro_batch": 2},
        {"accumulation": 2},
        {"precision": "bf16_pure"} if shard not in (ShardKind.ZERO2, ShardKind.ZERO3) else {"gpus": 64},
        {"gpus": 3},
        {"precision": "fp32", "sequence_length": 1024} if method is not MethodKind.QLORA else {"double_quant": False},
        {"loss": "chunked", "micro_batch": 4},
        {"gpus": 1} if shard is ShardKind.DDP else {"gpus": 64},
        _offload(shard) or {"sequence_length": 512},
        {"targets": ("q_proj", "v_proj"), "rank": 64} if method is not MethodKind.FULL else {"micro_batch": 8},
    ]
    return iter(wanted[number::3])


def _offload(shard: ShardKind) -> dict[str, Any] | None:
    return {
        ShardKind.FSDP: {"offload": "all"},
        ShardKind.ZERO2: {"offload": "optimizer"},
        ShardKind.ZERO3: {"offload": "optimizer"},
        ShardKind.DDP: None,
    }[shard]


def _whole_models() -> Iterator[Case]:
    """As they are."""
    for model in ("llama3.2-1b", "qwen2.5-0.5b", "smollm2-135m"):
        for method, shard in (
            (MethodKind.FULL, ShardKind.DDP),
            (MethodKind.FULL, ShardKind.FSDP),
            (MethodKind.FULL, ShardKind.ZERO2),
            (MethodKind.LORA, ShardKind.ZERO3),
        ):
            options = {"gpus": 8, "micro_batch": 4, "sequence_length": 1024}
            yield Case(model=model, layers=None, method=method, shard=shard, options=options)
    for shard in SHARDS:
        options = {"gpus": 8, "micro_batch": 1, "sequence_length": 4096}
        yield Case(model="llama3-8b", layers=None, method=MethodKind.FULL, shard=shard, options=options)
