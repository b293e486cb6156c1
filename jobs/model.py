"""The model and its tokenizer: loaded from where the job says, in the dtypes of launcher.precision, adapters attached.

Only safetensors files are read, and code that comes with a model is never run.
"""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from jobs.chunked_loss import use_chunked_loss
from jobs.dtypes import torch_dtype
from jobs.recompute import checkpoint_activations
from jobs.waiting import Read, into_host_memory
from launcher.precision import Dtypes, dtypes, is_deepspeed
from launcher.shards import waits_in_host_memory
from launcher.spec import (
    JobSpec,
    LoraBias,
    Loss,
    MethodKind,
    MethodSpec,
    ModelSpec,
    QuantType,
    ShardKind,
)

ALL_LINEAR = "all-linear"


def location(model: ModelSpec) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model: a directory or hub id, and the arguments that go with it."""
    if model.source == "hub":
        assert model.hub_id is not None
        return model.hub_id, {"revision": model.revision}
    if model.source == "embedded":
        from jobs.embedded import model_dir

        return str(model_dir()), {"local_files_only": True}
    assert model.path is not None
    return str(Path(model.path).resolve()), {"local_files_only": True}


def load_tokenizer(spec: JobSpec) -> Any:
    """The model's tokenizer, with a padding token."""
    where, arguments = location(spec.model)
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **arguments)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_weights(model: ModelSpec, options: dict[str, Any]) -> Any:
    """The model with its weights from where they are."""
    where, arguments = location(model)
    return AutoModelForCausalLM.from_pretrained(
        where, trust_remote_code=False, use_safetensors=True, **arguments, **options
    )


def load_model(spec: JobSpec, *, device: torch.device, read: Read = read_weights) -> Any:
    """The model ready for the Trainer: loaded, adapters attached, activation checkpointing on, every dtype as planned.

    TrainingArguments must exist before: ZeRO-3 and rank-0 loading are found through the state it sets up.
    """
    planned = dtypes(spec)
    options = {
        "dtype": torch_dtype(planned.trained if planned.frozen is None else planned.frozen),
        "attn_implementation": spec.train.attention.value,
        **quantisation(spec, device),
    }
    if waits_in_host_memory(spec):
        read = into_host_memory(read, device)
    model = read(spec.model, options)
    if spec.shard.kind is ShardKind.ZERO3:
        # zero.Init partitions a tied head, and that partition's own methods keep it (deepspeed 0.19.8
        # runtime/zero/partition_parameters.py _convert_to_deepspeed_param).
        gc.collect()
    if spec.method.kind is MethodKind.QLORA:
        keep_trainable_format(model)
    checkpoint_activations(model, spec.train.activation_checkpointing)
    if spec.method.kind is not MethodKind.FULL:
        model = attach_adapters(model, spec, planned)
    if spec.train.loss is Loss.CHUNKED:
        use_chunked_loss(model)
    return model


def keep_trainable_format(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for CPU inference at the first evaluation.

    On CPUs with AVX512-BF16 it does so in place as soon as a layer runs outside training (0.50, nn/modules.py,
    Linear4bit.forward); the backward pass then reads the repacked weights as if they were not, and trains on wrong
    gradients.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def attach_adapters(model: PreTrainedModel, spec: JobSpec, planned: Dtypes) -> Any:
    """Wrap the model with LoRA adapters whose first values depend on the job's seed alone."""
    from peft import get_peft_model

    torch.manual_seed(spec.train.seed)  # the same adapters under every sharding, however the base was loaded
    adapted = get_peft_model(model, lora_config(spec.method), autocast_adapter_dtype=False)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch_dtype(planned.trained))
    # Left to itself, peft saves the whole embedding beside adapters of the embedding or the head.
    adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def lora_config(method: MethodSpec) -> Any:
    """peft's configuration of the method's adapters."""
    from peft import LoraConfig, TaskType

    assert method.targets is not None
    assert method.bias is not None
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=ALL_LINEAR if method.targets == (ALL_LINEAR,) else list(method.targets),
        bias=_PEFT_BIAS[method.bias],
        task_type=TaskType.CAUSAL_LM,
    )


_PEFT_BIAS = {LoraBias.NONE: "none", LoraBias.LORA_ONLY: "lora_only", LoraBias.ALL: "all"}


def quantisation(spec: JobSpec, device: torch.device) -> dict[str, Any]:
    """How bitsandbytes quantises, and where it puts the result.

    FSDP2 (jobs/waiting.py) and ZeRO-3 move the weights themselves; elsewhere they must be on the rank's own device from
    the start.
    """
    if spec.method.kind is not MethodKind.QLORA:
        return {}
    placed = spec.shard.kind in (ShardKind.DDP, ShardKind.ZERO2)
    return {"quantization_config": bits_and_bytes(spec.method), **({"device_map": {"": device}} if placed else {})}


def bits_and_bytes(method: MethodSpec) -> BitsAndBytesConfig:
    """bitsandbytes' own words for a quantised base. 8 bits leave columns with values over 6.0 to half precision, as
    their paper does (transformers' default)."""
    assert method.quant_type is not None
    assert method.compute_dtype is not None
    assert method.storage_dtype is not None
    if method.quant_type is QuantType.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method.quant_type.value,
        bnb_4bit_use_double_quant=method.double_quant,
        bnb_4bit_compute_dtype=torch_dtype(method.compute_dtype),
        bnb_4bit_quant_storage=torch_dtype(method.storage_dtype),
    )


def result_dtype(spec: JobSpec) -> torch.dtype:
    """The dtype of the saved result: adapters as trained, a full model in its compute dtype, as it will be used."""
    planned = dtypes(spec)
    if spec.method.kind is MethodKind.FULL or is_deepspeed(spec.shard.kind):
        return torch_dtype(planned.compute)
    return torch_dtype(planned.trained)
