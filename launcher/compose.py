"""From what Hydra composed to a frozen JobSpec: `auto` is decided, words become enums, all problems come at once.

A field that cannot be read is replaced by a harmless value so that the rules about the other fields still
speak; a rule that names a field already reported stays silent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.clusters import read_cluster, read_nodes, read_slots, with_nodes
from launcher.errors import InputError, Problem
from launcher.host import Host
from launcher.models import ModelShape, model_shape, read_config
from launcher.precision import COMPUTE
from launcher.reader import Reader
from launcher.rules import broken_rules
from launcher.schema import AUTO
from launcher.shards import shard_defaults, storage_dtype
from launcher.spec import (
    ActivationCheckpointing,
    Attention,
    ClusterKind,
    ClusterSpec,
    DataSpec,
    DeviceSpec,
    Dtype,
    Fit,
    JobSpec,
    LoraBias,
    Loss,
    MethodKind,
    MethodSpec,
    Mode,
    ModelSpec,
    Offload,
    Optimizer,
    PlanBy,
    PlanFormat,
    Precision,
    Program,
    QuantType,
    Schedule,
    ShardKind,
    ShardSpec,
    TrackerKind,
    TrackerSpec,
    TrainSpec,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain containers, interpolations unresolved (they are refused later)."""
    from omegaconf import OmegaConf  # what is composed without Hydra does without it

    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "hydra"}


FALLBACK_MODEL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "vocab_size": 256}  # fmt: skip
"""Stands in for a model that could not be read, so that the rules about everything else still speak."""


def _refuse_interpolations(reader: Reader, value: Any, field: str = "") -> None:
    """`${...}` is refused wherever it comes from: `oc.env` could put a secret into a file."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _refuse_interpolations(reader, part, f"{field}.{key}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            _refuse_interpolations(reader, part, field)
    elif isinstance(value, str) and "${" in value:
        rule = "is an interpolation; values are taken as they stand"
        reader.problems.append(Problem(field=field, value=value, rule=rule, way_out="write the value itself"))


def _model(reader: Reader) -> tuple[ModelSpec, ModelShape]:
    conf = reader.get("model")
    path, config = conf["path"], dict(conf["config"])
    if conf["source"] == "path":
        config = dict(FALLBACK_MODEL)
        if path is None:
            reader.report("model.path", "is required with model=path", "model.path=DIR, a folder with config.json")
        else:
            path = str(Path(path).expanduser().absolute())
            try:
                config = read_config(Path(path))
            except InputError as error:
                reader.problems.extend(error.problems)
    elif path is not None:
        reader.report("model.path", f"has no effect with model={conf['name']}", "use model=path")
    try:
        shape = model_shape(config)
    except InputError as error:
        reader.problems.extend(error.problems)
        shape = model_shape(FALLBACK_MODEL)
    name = Path(path).name if conf["source"] == "path" and path is not None else conf["name"]
    spec = ModelSpec(
        name=name,
        source=conf["source"],
        hub_id=conf["hub_id"],
        revision=conf["revision"],
        license=conf["license"],
        gated=conf["gated"],
        path=path,
        config=config,
    )
    return spec, shape


def _device(reader: Reader, host: Host, mode: Mode, num_gpus: int | str, cluster: ClusterSpec) -> DeviceSpec:
    """The device every rank has; `auto` is the host's GPU, the CPU for a run without one, or no card for a plan.

    Of a Slurm cluster's nodes nothing is known here: a card is named, or only planned for.
    """
    conf = reader.get("device")
    if conf["kind"] == "cuda":
        return DeviceSpec(
            name=conf["name"],
            kind="cuda",
            memory_bytes=conf["memory_bytes"],
            compute_capability=tuple(conf["compute_capability"]),
            memory_bandwidth_bytes_per_s=conf["memory_bandwidth_bytes_per_s"],
            source=conf["source"],
        )
    elsewhere = cluster.kind is ClusterKind.SLURM
    if conf["kind"] == "auto" and elsewhere and mode is not Mode.PLAN:
        rule, way_out = "cannot be looked at from here on a Slurm cluster", "name it: device=h100-80g, or device=cpu"
        reader.problems.append(Problem(field="device", value=AUTO, rule=rule, way_out=way_out))
    if conf["kind"] == "auto" and host.gpu is not None and not elsewhere:
        return host.gpu
    if conf["kind"] == "auto" and mode is Mode.PLAN:
        return DeviceSpec(
            name="any",
            kind="cuda",
            memory_bytes=None,
            compute_capability=None,
            memory_bandwidth_bytes_per_s=None,
            source="no card named, and this host has none",
        )
    num_ranks = num_gpus if isinstance(num_gpus, int) and num_gpus >= 1 else NUM_CPU_RANKS
    asked_bytes = cluster.slurm.memory_bytes_per_node if cluster.slurm is not None else None
    whose = "cluster.mem" if asked_bytes else f"the RAM available on {host.hostname}"
    return DeviceSpec(
        name="cpu",
        kind="cpu",
        memory_bytes=(asked_bytes or host.ram_available_bytes) // num_ranks,
        compute_capability=None,
        memory_bandwidth_bytes_per_s=None,
        source=f"{whose}, shared by {num_ranks} ranks",
    )


NUM_CPU_RANKS = 2
"""Ranks on a host without a GPU when gpus=auto: enough for every sharding to shard something."""


def _gpus_per_node(reader: Reader, host: Host, device: DeviceSpec, slots: int | None) -> int:
    value = reader.get("gpus")
    if value == AUTO and slots is not None:
        return slots
    if value == AUTO:
        return host.num_gpus if device.kind == "cuda" and host.num_gpus else NUM_CPU_RANKS
    if not isinstance(value, int):
        reader.report("gpus", "must be a whole number or auto")
        return 1
    return int(reader.at_least("gpus", 1))


def _precision(reader: Reader, device: DeviceSpec) -> Precision:
    if reader.get("train.precision") != AUTO:
        return reader.choice("train.precision", Precision)
    if device.kind == "cpu":
        return Precision.FP32
    # bf16 arithmetic begins with compute capability 8.0 (Ampere).
    older = device.compute_capability is not None and device.compute_capability < (8, 0)
    return Precision.FP16_MIXED if older else Precision.BF16_MIXED


def _method(reader: Reader, shard: ShardKind, precision: Precision) -> MethodSpec:
    kind = reader.choice("method.name", MethodKind)
    targets = reader.get("method.targets")
    if targets is not None:
        names = [targets] if isinstance(targets, str) else targets
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            reader.report("method.targets", "must be all-linear or a list of names", "method.targets=[q_proj,v_proj]")
            names = ["all-linear"]
        targets = tuple(names)
    quant_type = reader.optional_choice("method.quant_type", QuantType)
    compute, storage = reader.get("method.compute_dtype"), reader.get("method.storage_dtype")
    compute_dtype = COMPUTE[precision] if compute == AUTO else reader.optional_choice("method.compute_dtype", Dtype)
    stored_in = (
        storage_dtype(quant_type, shard, compute_dtype)
        if storage == AUTO
        else reader.optional_choice("method.storage_dtype", Dtype)
    )
    return MethodSpec(
        kind=kind,
        rank=reader.at_least("method.rank", 1),
        alpha=reader.at_least("method.alpha", 0, exclusive=True),
        dropout=reader.fraction("method.dropout"),
        targets=targets,
        bias=reader.optional_choice("method.bias", LoraBias),
        quant_type=quant_type,
        double_quant=_double_quant(reader, quant_type),
        compute_dtype=compute_dtype,
        storage_dtype=stored_in,
    )


def _double_quant(reader: Reader, quant_type: QuantType | None) -> bool | None:
    """Whether the constants of 4-bit blocks are quantised too; `auto` does it. 8-bit weights have no blocks."""
    value = reader.get("method.double_quant")
    if value == AUTO:
        return quant_type is not QuantType.INT8
    if not isinstance(value, bool | None):
        reader.report("method.double_quant", "must be true, false or auto")
        return False
    return value


def _shard(reader: Reader, hidden_size: int, *, on_cuda: bool) -> ShardSpec:
    kind = reader.choice("shard.name", ShardKind)
    defaults = shard_defaults(kind, hidden_size, on_cuda=on_cuda)
    knobs: dict[str, Any] = {}
    for knob in (field.name for field in dataclasses.fields(ShardSpec) if field.name not in ("kind", "offload")):
        field, value, default = f"shard.{knob}", reader.get(f"shard.{knob}"), getattr(defaults, knob)
        if value == AUTO:
            knobs[knob] = default
        elif default is None and value is not None:
            reader.report(field, f"has no effect with shard={kind}")
        elif default is not None and (value is None or isinstance(value, bool) is not isinstance(default, bool)):
            reader.report(field, f"must be {'true, false' if isinstance(default, bool) else 'a number'} or auto")
        else:
            knobs[knob] = value if isinstance(value, bool) else reader.at_least(field, 0)
    return ShardSpec(kind=kind, offload=reader.choice("shard.offload", Offload), **knobs)


def _existing_file(reader: Reader, field: str) -> str | None:
    value = reader.get(field)
    return None if value is None else str(Path(value).expanduser().absolute())


def _data(reader: Reader) -> DataSpec:
    return DataSpec(
        name=reader.get("data.name"),
        path=_existing_file(reader, "data.path"),
        eval_path=_existing_file(reader, "data.eval_path"),
        eval_fraction=reader.fraction("data.eval_fraction") or 0.0,
        max_samples=reader.at_least("data.max_samples", 2),
    )


LEARNING_RATES = {MethodKind.FULL: 2e-5, MethodKind.LORA: 2e-4, MethodKind.QLORA: 2e-4}
"""learning_rate=auto: QLoRA's paper trains adapters at 2e-4 (arXiv:2305.14314, table 9); full wants a tenth."""


def _learning_rate(reader: Reader, method: MethodKind) -> float:
    value = reader.get("train.learning_rate")
    if value == AUTO:
        return LEARNING_RATES[method]
    return float(reader.at_least("train.learning_rate", 0, exclusive=True))


def _micro_batch(reader: Reader) -> int | None:
    value = reader.get("train.micro_batch")
    return None if value == AUTO else int(reader.at_least("train.micro_batch", 1))


def _attention(reader: Reader, config: Mapping[str, Any]) -> Attention:
    if reader.get("train.attention") != AUTO:
        return reader.choice("train.attention", Attention)
    return Attention.EAGER if config.get("attn_logit_softcapping") else Attention.SDPA


def _train(reader: Reader, precision: Precision, method: MethodKind, config: Mapping[str, Any]) -> TrainSpec:
    return TrainSpec(
        epochs=reader.at_least("train.epochs", 0, exclusive=True),
        max_steps=reader.at_least("train.max_steps", 1),
        global_batch=reader.at_least("train.global_batch", 1),
        micro_batch=_micro_batch(reader),
        sequence_length=reader.at_least("train.sequence_length", 8),
        packing=reader.get("train.packing"),
        precision=precision,
        optimizer=reader.choice("train.optimizer", Optimizer),
        learning_rate=_learning_rate(reader, method),
        weight_decay=reader.at_least("train.weight_decay", 0),
        schedule=reader.choice("train.schedule", Schedule),
        warmup_ratio=reader.fraction("train.warmup_ratio") or 0.0,
        max_grad_norm=reader.at_least("train.max_grad_norm", 0, exclusive=True),
        activation_checkpointing=reader.choice("train.activation_checkpointing", ActivationCheckpointing),
        attention=_attention(reader, config),
        loss=reader.choice("train.loss", Loss),
        log_every_steps=reader.at_least("train.log_every_steps", 1),
        eval_every_steps=reader.at_least("train.eval_every_steps", 1),
        save_every_steps=reader.at_least("train.save_every_steps", 1),
        keep_checkpoints=reader.at_least("train.keep_checkpoints", 1),
        dataloader_workers=reader.at_least("train.dataloader_workers", 0),
        seed=reader.at_least("train.seed", 0),
    )


def make_spec(conf: Mapping[str, Any], host: Host) -> JobSpec:
    """The frozen job that a composed configuration means on this host.

    conf: the composed configuration as plain containers, interpolations unresolved.
    Raises InputError with every problem found.
    """
    reader = Reader(conf)
    _refuse_interpolations(reader, conf)
    mode = reader.choice("mode", Mode)
    reader.choice("fit", Fit)
    reader.choice("plan.format", PlanFormat)
    reader.choice("plan.by", PlanBy)
    cluster = read_cluster(reader)
    nodes = read_nodes(reader, cluster)
    cluster = with_nodes(cluster, nodes)
    slots = read_slots(reader, cluster)
    device = _device(reader, host, mode, reader.get("gpus") if slots is None else slots, cluster)
    precision = _precision(reader, device)
    model, shape = _model(reader)
    shard = _shard(reader, shape.hidden_size, on_cuda=device.kind == "cuda")
    method = _method(reader, shard.kind, precision)
    spec = JobSpec(
        model=model,
        method=method,
        shard=shard,
        data=_data(reader),
        train=_train(reader, precision, method.kind, model.config),
        device=device,
        cluster=cluster,
        tracker=TrackerSpec(kind=reader.choice("tracker.name", TrackerKind), project=reader.get("tracker.project")),
        program=reader.choice("launcher", Program),
        gpus_per_node=_gpus_per_node(reader, host, device, slots),
        nodes=nodes,
    )
    if reader.get("sweep.parallel") != AUTO:
        reader.at_least("sweep.parallel", 1)
    reported = {problem.field for problem in reader.problems}
    broken = broken_rules(spec, shape, mode, host)
    problems = reader.problems + [problem for problem in broken if problem.field not in reported]
    if problems:
        raise InputError(problems)
    return spec
