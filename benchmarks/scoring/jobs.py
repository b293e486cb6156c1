"""From a case to the job that the planner is asked about, and the practice it ran under."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from launcher.devices import listed_devices
from launcher.models import lora_parameters, model_shape
from launcher.planner.practice import Practice
from launcher.shards import shard_defaults
from launcher.spec import (
    DeviceSpec,
    JobSpec,
    Loss,
    MethodKind,
    MethodSpec,
    Precision,
    QuantType,
    ShardKind,
)
from tests.specs import device_spec, job_spec, method_spec

from . import reading
from .cases import Case
from .models import find_config
from .practices import practice_of
from .reading import Sharding, Unmodelled

# fms-acceleration scripts/benchmarks/scenarios.yaml: every LoRA scenario.
FMS_DROPOUT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the planner is asked."""

    spec: JobSpec
    practice: Practice
    sharding: Sharding


def job_of(case: Case) -> Job:
    """The job of a case; raises Unmodelled with the reason."""
    reading.refuse_foreign(case)
    config = find_config(str(case.row.get("model", "")))
    if config is None:
        raise Unmodelled(f"the architecture is not known: {case.row.get('model')}")
    method, sharding = reading.read_method(case), reading.read_sharding(case)
    precision, loss = reading.read_precision(case, method, sharding), reading.read_loss(case)
    spec = job_spec(
        model={"name": str(case.row["model"]), "config": dict(config)},
        method=_method(case, method, precision, sharding.kind),
        shard=dataclasses.replace(
            shard_defaults(sharding.kind, config["hidden_size"], on_cuda=True), offload=reading.read_offload(case)
        ),
        data={"name": "measured", "eval_fraction": 0.0},
        train=_train(case, precision, loss),
        device=card_of(case) or ANY_CARD,
        gpus=reading.read_count(case, "n_gpus"),
    )
    _check_targets(spec)
    return Job(spec=spec, practice=practice_of(case, method, sharding, precision, loss), sharding=sharding)


def _check_targets(spec: JobSpec) -> None:
    """Raise Unmodelled for adapters that this model cannot have."""
    method = spec.method
    if method.targets is None:
        return
    assert method.rank is not None
    try:
        lora_parameters(model_shape(spec.model.config), method.targets, method.rank)
    except ValueError as problem:
        raise Unmodelled(str(problem)) from problem


ANY_CARD = device_spec("any", compute_capability=(8, 0), source="a card that conf/device does not list")


def card_of(case: Case) -> DeviceSpec | None:
    """The listed card that the row ran on: its family by name, its size by the figure in the name where one is."""
    text = case.text("hardware").replace("-", " ")
    words = text.replace("/", " ").split()
    families = [card for card in listed_devices() if card.name.split("-")[0].removeprefix("rtx") in words]
    sizes = [card for card in families if f"{card.name.rpartition('-')[2].removesuffix('g')}gb" in text]
    if sizes:
        return sizes[0]
    return (
        families[-1]
        if families and not any("gb" in word for word in words if word[:1].isdigit())
        else (families[0] if len(families) == 1 else None)
    )


def _method(case: Case, kind: MethodKind, precision: Precision, shard: ShardKind) -> MethodSpec:
    if kind is MethodKind.FULL:
        return MethodSpec(kind=kind)
    dropout = reading.read_dropout(case)
    if dropout is None:
        dropout = FMS_DROPOUT if "fms-acceleration" in case.source else 0.0
    return method_spec(
        kind,
        shard=shard,
        precision=precision,
        rank=reading.read_count(case, "lora_rank"),
        dropout=dropout,
        targets=reading.read_targets(case),
        quant_type=QuantType.FP4 if "fp4" in case.text("quant") else QuantType.NF4,
        double_quant=kind is MethodKind.QLORA and reading.read_double_quant(case),
    )


def _train(case: Case, precision: Precision, loss: Loss) -> dict[str, Any]:
    """What the row says of its training."""
    micro_batch = reading.read_count(case, "micro_batch")
    return {
        "global_batch": micro_batch * reading.read_count(case, "n_gpus") * reading.read_accumulation(case),
        "micro_batch": micro_batch,
        "sequence_length": reading.read_count(case, "seq_len"),
        "precision": precision,
        "optimizer": reading.read_optimizer(case),
        "activation_checkpointing": reading.read_checkpointing(case),
        "attention": reading.read_attention(case),
        "loss": loss,
    }
