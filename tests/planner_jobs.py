"""Jobs for the planner's tests, built directly: no Hydra, no host."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from launcher.devices import find_device
from launcher.models import model_shape
from launcher.paths import conf_dir
from launcher.planner.estimate import Estimate, Estimator
from launcher.planner.types import RankPlan, Term
from launcher.shards import shard_defaults
from launcher.spec import (
    ActivationCheckpointing,
    Attention,
    DeviceSpec,
    JobSpec,
    Loss,
    MethodKind,
    Offload,
    Optimizer,
    Precision,
    QuantType,
    ShardKind,
)
from launcher.units import GIB
from tests.specs import device_spec, job_spec, method_spec

ANY = device_spec("any", source="")
CPU = device_spec("cpu", "cpu", 8 * GIB, source="")

TINY_CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def model_config(name: str) -> dict[str, Any]:
    """The config of a model under conf/model."""
    config: dict[str, Any] = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text())["config"]
    return config


def card(name: str) -> DeviceSpec:
    """A listed card, 'any' or 'cpu'."""
    return {"any": ANY, "cpu": CPU}.get(name) or find_device(name)


def job(
    model: str | dict[str, Any] = "llama3-8b",
    *,
    method: str = "lora",
    shard: str = "ddp",
    offload: str = "none",
    device: str | DeviceSpec = "a100-80g",
    gpus: int = 1,
    nodes: int = 1,
    rank: int = 16,
    targets: tuple[str, ...] = ("all-linear",),
    dropout: float = 0.0,
    double_quant: bool = True,
    quant_type: str = "nf4",
    precision: str = "bf16_mixed",
    global_batch: int = 16,
    micro_batch: int | None = 1,
    sequence_length: int = 2048,
    checkpointing: str = "full",
    attention: str = "sdpa",
    loss: str = "cross_entropy",
    optimizer: str = "adamw",
    packing: bool = False,
    knobs: dict[str, Any] | None = None,
) -> JobSpec:
    """A job with everything at the defaults of conf/ but what is named."""
    config = model_config(model) if isinstance(model, str) else model
    on = card(device) if isinstance(device, str) else device
    shard_kind, wanted = ShardKind(shard), Precision(precision)
    defaults = shard_defaults(shard_kind, config["hidden_size"], on_cuda=on.kind == "cuda")
    return job_spec(
        model={"name": model if isinstance(model, str) else "tiny", "config": config},
        method=method_spec(
            MethodKind(method),
            shard=shard_kind,
            precision=wanted,
            rank=rank,
            dropout=dropout,
            targets=targets,
            quant_type=QuantType(quant_type),
            double_quant=double_quant,
        ),
        shard=dataclasses.replace(defaults, offload=Offload(offload), **(knobs or {})),
        train={
            "global_batch": global_batch,
            "micro_batch": micro_batch,
            "sequence_length": sequence_length,
            "packing": packing,
            "precision": wanted,
            "optimizer": Optimizer(optimizer),
            "learning_rate": 1e-4,
            "activation_checkpointing": ActivationCheckpointing(checkpointing),
            "attention": Attention(attention),
            "loss": Loss(loss),
        },
        device=on,
        gpus=gpus,
        nodes=nodes,
    )


def estimate(spec: JobSpec) -> Estimate:
    """The planner's answer for a job whose micro batch is chosen."""
    return Estimator(model_shape(spec.model.config)).estimate(spec)


def only_rank(spec: JobSpec) -> RankPlan:
    """The plan of a job whose ranks are all alike."""
    (rank,) = estimate(spec).ranks
    return rank


def term(rank: RankPlan, name: str) -> Term:
    """The one term of this name."""
    (found,) = (t for t in rank.terms if t.name == name)
    return found
