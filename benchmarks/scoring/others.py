"""What other estimators answer for the same jobs, each by its own published code, in processes of their own.

DeepSpeed and accelerate import torch, so one child process (peer_estimates.py) asks them for all rows at once.
fitcheck-llm is asked where it is installed: `pip install fitcheck-llm`. None of them plans every row; where one does
not, it is left out of its own figures and nowhere else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.models import ModelShape, lora_parameters, model_shape
from launcher.spec import ActivationCheckpointing, Attention, Loss, MethodKind, Precision, ShardKind

from .cases import Case, Metric
from .jobs import Job
from .score import Score, scored

CHILD = Path(__file__).with_name("peer_estimates.py")
TIMEOUT_S = 300
# fitcheck-llm's keys for the cards that it knows, by ours.
FITCHECK_CARDS = {
    "t4": "t4", "l4": "l4", "a10": "a10", "a6000": "a6000", "l40s": "l40s", "a100-40g": "a100-40",
    "a100-80g": "a100-80", "h100-80g": "h100-80", "h200": "h200", "b200": "b200", "rtx3090": "3090",
    "rtx4090": "4090", "rtx5090": "5090",
}  # fmt: skip


def peer_scores(jobs: Sequence[tuple[Case, Job]], python: str) -> tuple[list[Score], list[str]]:
    """The other estimators' scores, and a line for each that could not be asked.

    python: an interpreter that has fitcheck-llm; the one that runs this has the rest.
    """
    asked = [_question(index, case, job) for index, (case, job) in enumerate(jobs)]
    scores: list[Score] = []
    notes: list[str] = []
    wanted = (("deepspeed", sys.executable), ("accelerate", sys.executable), ("fitcheck-llm", python))
    for name, interpreter in wanted:
        answers = _ask(name, interpreter, asked)
        if isinstance(answers, str):
            notes.append(f"{name}: {answers}")
            continue
        for index, (case, job) in enumerate(jobs):
            scores += scored(case, job, {name: _by_metric(answers.get(str(index), {}))})
    return scores, notes


def _ask(name: str, interpreter: str, asked: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]] | str:
    """Each answered row's figures by metric, or why there are none."""
    command = (interpreter, str(CHILD), name)
    try:
        done = subprocess.run(
            command, input=json.dumps(list(asked)), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"could not be asked: {problem}"
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1]
    # Packages may write to stdout as they are imported; the answer is the last line.
    answers: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _by_metric(figures: Mapping[str, int]) -> dict[Metric, int]:
    """Model states have no allocator around them, so they are held against whatever was measured."""
    found = {metric: figures.get(metric.value, figures.get("any")) for metric in Metric}
    return {metric: size_bytes for metric, size_bytes in found.items() if size_bytes is not None}


def _question(index: int, case: Case, job: Job) -> dict[str, Any]:
    """A job in plain words: what any of them needs to know."""
    spec, shape = job.spec, model_shape(job.spec.model.config)
    return {
        "index": index,
        "name": str(case.row.get("model")),
        "num_parameters": shape.num_parameters,
        "num_trained": _num_trained(job, shape),
        "largest_layer_parameters": _largest_layer(shape),
        "num_gpus": spec.world_size,
        "method": spec.method.kind.value,
        "sharding": spec.shard.kind.value,
        "offload": spec.shard.offload.value,
        "is_fp32": spec.train.precision is Precision.FP32,
        "is_mixed": spec.train.precision in (Precision.BF16_MIXED, Precision.FP16_MIXED),
        "is_fp16": spec.train.precision is Precision.FP16_MIXED,
        "double_quant": bool(spec.method.double_quant),
        "lora_rank": spec.method.rank,
        "lora_targets": list(spec.method.targets or ()),
        "micro_batch": spec.micro_batch,
        "sequence_length": spec.train.sequence_length,
        "checkpointing": spec.train.activation_checkpointing is ActivationCheckpointing.FULL,
        "flash": spec.train.attention is not Attention.EAGER,
        "is_fused_loss": spec.train.loss is not Loss.CROSS_ENTROPY,
        "optimizer": spec.train.optimizer.value,
        "card": FITCHECK_CARDS.get(spec.device.name),
        "shape": {
            "hidden_size": shape.hidden_size,
            "num_layers": shape.num_layers,
            "num_attention_heads": shape.num_attention_heads,
            "num_kv_heads": shape.num_key_value_heads,
            "intermediate_size": shape.intermediate_size,
            "vocab_size": shape.vocab_size,
            "head_dim": shape.head_dim,
            "tie_word_embeddings": shape.tie_word_embeddings,
        },
        "is_single": spec.shard.kind is ShardKind.DDP and spec.world_size == 1,
    }


def _num_trained(job: Job, shape: ModelShape) -> int:
    method = job.spec.method
    if method.kind is MethodKind.FULL:
        return shape.num_parameters
    assert method.targets is not None
    assert method.rank is not None
    return sum(p.num_elements for p in lora_parameters(shape, method.targets, method.rank))


def _largest_layer(shape: ModelShape) -> int:
    """Parameters of the largest module that holds parameters itself, as DeepSpeed's helper counts it."""
    return max(p.num_elements for p in shape.parameters)
