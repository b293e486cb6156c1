"""From the free text of a row to settings. Every reader answers or raises Unmodelled with the reason; none guesses."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.spec import (
    ActivationCheckpointing,
    Attention,
    Loss,
    MethodKind,
    Offload,
    Optimizer,
    Precision,
    ShardKind,
)

from .cases import Case


class Unmodelled(Exception):
    """The planner does not answer for this row; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How a row was sharded. label: as tables show it ('none' on one GPU, 'fsdp1' apart from FSDP2)."""

    kind: ShardKind
    label: str


# What a row may say that has no counterpart in a job, in the fields where it would say it. The order is that in which
# a row that has several is refused.
FOREIGN = (
    ("gptq", "GPTQ quantisation", ("quant", "method", "notes")),
    ("foak triton", "FOAK's fused cross entropy", ("loss",)),
    ("op-level", "a single operation, no training step", ("method",)),
    ("init only", "a model that was only made, no training step", ("method",)),
    (" vs ", "two methods in one row", ("method",)),
    ("dpo", "a preference loss (DPO)", ("method",)),
    ("rl loss", "a reinforcement-learning loss", ("loss",)),
    ("lm_head trained", "adapters beside a trained embedding and head (modules_to_save)", ("method",)),
    ("float8", "float8 layers", ("quant", "sharding")),
    ("fp8", "float8 layers", ("quant", "sharding", "precision")),
    ("mxfp8", "float8 layers", ("quant", "precision")),
    ("sequence_parallel", "sequence parallelism", ("sharding",)),
    ("zero-1", "ZeRO stage 1", ("sharding",)),
    ("no_shard", "FSDP1 with NO_SHARD", ("sharding",)),
    ("optimizer_in_bwd", "an optimizer stepped inside the backward pass", ("optimizer",)),
    ("activation offload", "activations offloaded to the host", ("offload",)),
    ("cpuoffload", "FSDP1 with CPU offload", ("offload",)),
    ("offload json", "FSDP1 with CPU offload", ("sharding",)),
    ("thunder", "a compiler of its own (Thunder)", ("compile",)),
    ("selective", "selective activation checkpointing of another loop", ("grad_checkpointing",)),
    ("per-op sac", "selective activation checkpointing of another loop", ("grad_checkpointing",)),
    ("capacity note", "a card's size rather than a measurement", ("notes",)),
)
CONTEXT_PARALLEL = re.compile(r"\bcp\s*(\d+)")


def refuse_foreign(case: Case) -> None:
    """Raise for what has no counterpart in a job."""
    for word, reason, fields in FOREIGN:
        if word in case.text(*fields):
            raise Unmodelled(reason)
    found = CONTEXT_PARALLEL.search(case.text("sharding"))
    if found and int(found[1]) > 1:
        raise Unmodelled("context parallelism")


def read_count(case: Case, field: str) -> int:
    """A whole number that the row must state."""
    value = case.row.get(field)
    if isinstance(value, bool) or value is None:
        raise Unmodelled(f"{field} is not stated")
    if isinstance(value, int | float) and value == int(value) and value > 0:
        return int(value)
    text = str(value).strip().lower().replace(",", "")
    if found := re.fullmatch(r"(?:packed\s+)?(\d+)", text):
        return int(found[1])
    raise Unmodelled(f"{field} is not one number: {value}")


def read_method(case: Case) -> MethodKind:
    """Which parameters are trained."""
    text = case.text("method")
    quant = case.text("quant")
    if "qlora" in text:
        if "torchao" in quant:
            raise Unmodelled("torchao's 4-bit format")
        return MethodKind.QLORA
    if "lora" in text:
        if any(word in quant for word in ("nf4", "fp4", "4bit", "4-bit")):
            return MethodKind.QLORA
        if "8" in quant:
            raise Unmodelled("a quantised base that is not 4-bit")
        return MethodKind.LORA
    if "full" in text or "pretrain" in text:
        return MethodKind.FULL
    raise Unmodelled(f"method is not known: {case.row.get('method')}")


def read_double_quant(case: Case) -> bool:
    """Whether the 4-bit constants are quantised again."""
    return "double" in case.text("quant", "notes")


def read_sharding(case: Case) -> Sharding:
    """The sharding, DDP on a single rank included."""
    text = case.text("sharding")
    num_gpus = read_count(case, "n_gpus")
    if num_gpus == 1 and "zero-3" not in text and "zero-2" not in text:
        return Sharding(kind=ShardKind.DDP, label="none")
    if "zero-2" in text or "zero2" in text:
        return Sharding(kind=ShardKind.ZERO2, label="zero2")
    if "fsdp1" in text:
        return Sharding(kind=ShardKind.FSDP, label="fsdp1")
    if "fsdp2" in text or "fully_shard" in text:
        return Sharding(kind=ShardKind.FSDP, label="fsdp2")
    if "fsdp" in text:
        return Sharding(kind=ShardKind.FSDP, label="fsdp1")
    if "zero-3" in text or "zero3" in text:
        return Sharding(kind=ShardKind.ZERO3, label="zero3")
    if "ddp" in text:
        return Sharding(kind=ShardKind.DDP, label="ddp")
    raise Unmodelled(f"sharding is not known: {case.row.get('sharding')}")


def read_precision(case: Case, method: MethodKind, sharding: Sharding) -> Precision:
    """The precision. Half precision throughout is BF16_PURE whichever half it is: the bytes are the same.

    A Trainer that loads half-precision weights and trains all of them without an engine keeps no master copy, whatever
    mixed precision it is told (transformers trainer.py, accelerate accelerator.py: autocast only).
    """
    text = case.text("precision")
    if not text:
        raise Unmodelled("precision is not stated")
    half = Precision.FP16_MIXED if "bf16" not in text and "bfloat16" not in text else Precision.BF16_MIXED
    if "mixed_precision=no" in text or "true" in text or "optimizer states bf16" in text:
        return Precision.BF16_PURE
    if any(word in text for word in ("fp32 params", "fp32 master", "float32", "upcast")):
        return half
    if any(word in text for word in ("16",)):
        whole = method is MethodKind.FULL and sharding.kind is ShardKind.DDP
        return Precision.BF16_PURE if whole else half
    if "fp32" in text:
        return Precision.FP32
    raise Unmodelled(f"precision is not known: {case.row.get('precision')}")


def read_checkpointing(case: Case) -> ActivationCheckpointing:
    """Whether blocks are recomputed."""
    value = case.row.get("grad_checkpointing")
    text = str(value).lower()
    if value is None or "see source" in text:
        raise Unmodelled("activation checkpointing is not stated")
    if value is False or text in ("false", "none", "off", "no"):
        return ActivationCheckpointing.NONE
    if value is True or any(word in text for word in ("true", "full", "reentrant", "recompute", "on", "yes")):
        return ActivationCheckpointing.FULL
    raise Unmodelled(f"activation checkpointing is not known: {value}")


def read_attention(case: Case) -> Attention:
    """The attention kernel. Flash attention 3 keeps what 2 keeps (query, keys, values, output and log-sum-exp)."""
    text = case.text("attention")
    if "eager" in text:
        return Attention.EAGER
    if "sdpa" in text:
        return Attention.SDPA
    if "flash" in text:
        return Attention.FLASH_ATTENTION_2
    raise Unmodelled("attention is not stated" if not text else f"attention is not known: {case.row['attention']}")


def read_loss(case: Case) -> Loss:
    """The loss over the logits."""
    text = case.text("loss")
    if case.row.get("liger") is True or "liger" in text or "fused linear" in text:
        return Loss.FUSED_LINEAR
    if "chunk" in text and "chunked ce off" not in text:
        raise Unmodelled("a chunked loss of another loop")
    if any(word in text for word in ("hf", "causallm", "cross", "ce ", "ce,")) or text.strip() == "ce":
        return Loss.CROSS_ENTROPY
    raise Unmodelled("loss is not stated" if not text else f"loss is not known: {case.row['loss']}")


def read_optimizer(case: Case) -> Optimizer:
    """The optimizer and the width of its states."""
    text = case.text("optimizer")
    if "8bit" in text or "8-bit" in text:
        return Optimizer.PAGED_ADAMW_8BIT if "paged" in text else Optimizer.ADAMW_8BIT
    if "paged" in text:
        raise Unmodelled("a paged optimizer with 32-bit states")
    if "adam" in text:
        return Optimizer.ADAMW
    raise Unmodelled("optimizer is not stated" if not text else f"optimizer is not known: {case.row['optimizer']}")


def read_offload(case: Case) -> Offload:
    """What lives in host memory."""
    text = case.text("offload")
    if not text or text == "none":
        return Offload.NONE
    if "param" in text:
        return Offload.ALL
    if "optim" in text:
        return Offload.OPTIMIZER
    raise Unmodelled(f"offload is not known: {case.row['offload']}")


# Names of other models' projections -> those of the same matrices here (Qwen 1's fused c_attn, its w1 and w2).
TARGET_NAMES = {
    "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj",), "query": ("q_proj",), "key": ("k_proj",),
    "value": ("v_proj",), "projection": ("o_proj",), "gate": ("gate_proj",), "up": ("up_proj",),
    "down": ("down_proj",), "mlp": ("gate_proj", "up_proj", "down_proj"), "head": ("lm_head",),
    "c_attn": ("q_proj", "k_proj", "v_proj"), "c_proj": ("o_proj", "down_proj"), "w1": ("gate_proj",),
    "w2": ("up_proj",), "w3": ("down_proj",), "output_proj": ("o_proj",),
}  # fmt: skip
KNOWN_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj")


def read_targets(case: Case, *, has_c_attn: bool = False) -> tuple[str, ...]:
    """The adapted modules. c_attn beside q_proj names nothing in a model that has no c_attn."""
    text = case.text("lora_targets")
    if not text:
        raise Unmodelled("LoRA's targets are not stated")
    if "all-linear" in text or "all linear" in text:
        return ("all-linear",)
    words = re.split(r"[^\w]+", re.split(r"[;(]|,? dropout", text)[0])
    named = [word for word in words if word]
    if "q_proj" in named and not has_c_attn:
        named = [word for word in named if word != "c_attn"]
    found: dict[str, None] = {}
    for word in named:
        for target in TARGET_NAMES.get(word, (word,) if word in KNOWN_TARGETS else ()):
            found[target] = None
        if word not in TARGET_NAMES and word not in KNOWN_TARGETS and word != "experts":
            raise Unmodelled(f"a LoRA target is not known: {word}")
    return tuple(found)


def read_dropout(case: Case) -> float | None:
    """LoRA's dropout where the row says it."""
    found = re.search(r"dropout\s*=?\s*(\d*\.\d+)", case.text("lora_targets", "method", "notes"))
    return float(found[1]) if found else None


def read_accumulation(case: Case) -> int:
    """Micro batches per optimizer step and rank; 1 where nothing is said."""
    secondary = case.row.get("secondary")
    value = secondary.get("micro_batches_per_gpu_accum") if isinstance(secondary, dict) else None
    if isinstance(value, int):
        return value
    found = re.search(r"(?:grad(?:ient)?[ _]accum\w*)\D{0,3}(\d+)", case.text("notes"))
    return int(found[1]) if found else 1


def read_version(case: Case, package: str) -> tuple[int, int] | None:
    """A package's major and minor version, the lowest where a range is given; None where it is not stated."""
    found = re.search(rf"\b{re.escape(package)}\s*[<>=~]*\s*(\d+)\.(\d+)", case.text("versions"))
    return (int(found[1]), int(found[2])) if found else None
