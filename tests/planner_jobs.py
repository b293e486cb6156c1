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
from launcher.precision import COMPUTE
from launcher.shards import shard_defaults, storage_dtype
from launcher.spec import (
    ActivationCheckpointing,
    Attention,
    ClusterKind,
    ClusterSpec,
    DataSpec,
    DeviceSpec,
    Dtype,
    JobSpec,
    LoraBias,
    Loss,
    MethodKind,
    MethodSpec,
    ModelSpec,
    Offload,
    Optimizer,
    Precision,
    Program,
    QuantType,
    Schedule,
    ShardKind,
    TrackerKind,
    TrackerSpec,
    TrainSpec,
)
from launcher.units import GIB

ANY = DeviceSpec(
    name="any",
    kind="cuda",
    memory_bytes=None,
    compute_capability=None,
    memory_bandwidth_bytes_per_s=None,
    source="",
)
CPU = dataclasses.replace(ANY, name="cpu", kind="cpu", memory_bytes=8 * GIB)

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
    shard_kind, compute = ShardKind(shard), COMPUTE[Precision(precision)]
    defaults = shard_defaults(shard_kind, config["hidden_size"], on_cuda=on.kind == "cuda")
    return JobSpec(
        model=ModelSpec(
            name=model if isinstance(model, str) else "tiny",
            source="path",
            hub_id=None,
            revision=None,
            license="unknown",
            gated=False,
            path=".",
            config=config,
        ),
        method=_method(
            MethodKind(method), rank, targets, dropout, double_quant, QuantType(quant_type), compute, shard_kind
        ),
        shard=dataclasses.replace(defaults, offload=Offload(offload), **(knobs or {})),
        data=DataSpec(name="stdlib", path=None, eval_path=None, eval_fraction=0.1, max_samples=None),
        train=TrainSpec(
            epochs=1.0,
            max_steps=None,
            global_batch=global_batch,
            micro_batch=micro_batch,
            sequence_length=sequence_length,
            packing=packing,
            precision=Precision(precision),
            optimizer=Optimizer(optimizer),
            learning_rate=1e-4,
            weight_decay=0.0,
            schedule=Schedule.COSINE,
            warmup_ratio=0.03,
            max_grad_norm=1.0,
            activation_checkpointing=ActivationCheckpointing(checkpointing),
            attention=Attention(attention),
            loss=Loss(loss),
            log_every_steps=1,
            eval_every_steps=None,
            save_every_steps=None,
            keep_checkpoints=2,
            dataloader_workers=0,
            seed=42,
        ),
        device=on,
        cluster=ClusterSpec(kind=ClusterKind.LOCAL),
        tracker=TrackerSpec(kind=TrackerKind.NONE, project=None),
        program=Program.TORCHRUN,
        gpus_per_node=gpus,
        nodes=nodes,
    )


def _method(
    kind: MethodKind,
    rank: int,
    targets: tuple[str, ...],
    dropout: float,
    double_quant: bool,
    quant_type: QuantType,
    compute: Dtype,
    shard: ShardKind,
) -> MethodSpec:
    if kind is MethodKind.FULL:
        return MethodSpec(kind=kind)
    lora = MethodSpec(kind=kind, rank=rank, alpha=2.0 * rank, dropout=dropout, targets=targets, bias=LoraBias.NONE)
    if kind is MethodKind.LORA:
        return lora
    return dataclasses.replace(
        lora,
        quant_type=quant_type,
        double_quant=double_quant and quant_type is not QuantType.INT8,
        compute_dtype=compute,
        storage_dtype=storage_dtype(quant_type, shard, compute),
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
