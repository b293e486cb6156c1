"""What the planner says a block keeps, against what torch's autograd really saves in transformers' own block."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.planner.block import block_bytes
from launcher.spec import JobSpec, MethodKind, QuantType
from tests.planner_jobs import TINY_CONFIG, estimate, job

BATCH, LENGTH = 2, 64
CONFIG = TINY_CONFIG | {"num_hidden_layers": 1}


def torch_dtype(dtype: Any) -> torch.dtype:
    return getattr(torch, dtype.value)


def build(spec: JobSpec) -> torch.nn.Module:
    """The model as the job holds it on one rank; under fsdp as gathered."""
    held = estimate(spec).work.dtypes
    config = AutoConfig.for_model(**spec.model.config, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    dtype = torch_dtype(held.frozen or held.trained)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=spec.train.attention.value)
    method = spec.method
    if method.quant_type is QuantType.INT8:
        quantise_to_8_bits(model)
    if method.kind is not MethodKind.FULL:
        targets = "all-linear" if method.targets == ("all-linear",) else list(method.targets or ())
        lora = LoraConfig(r=method.rank, lora_dropout=method.dropout, target_modules=targets)
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch_dtype(held.trained))
    if spec.shard.kind == "fsdp":
        model.to(torch_dtype(held.compute))
    return model.train()


def quantise_to_8_bits(model: torch.nn.Module) -> None:
    """What load_in_8bit makes of the linear layers inside the blocks."""
    import bitsandbytes

    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, module in linears.items():
        if name == "lm_head":
            continue
        layer = bitsandbytes.nn.Linear8bitLt(
            module.in_features, module.out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )
        layer.weight = bitsandbytes.nn.Int8Params(module.weight.data, requires_grad=False).to("cpu")
        model.set_submodule(name, layer)


def saved_bytes_per_token(spec: JobSpec) -> float:
    """Bytes of distinct storages that autograd saves inside the block: no parameters, none of their autocast copies,
    nothing that all blocks share."""
    work = estimate(spec).work
    model = build(spec)
    base = model.get_base_model() if spec.method.kind is not MethodKind.FULL else model
    base.enable_input_require_grads()
    (block,) = base.model.layers
    parameters = list(model.parameters())
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    shapes = {shape for p in parameters for shape in (tuple(p.shape), tuple(reversed(p.shape)))}
    kept: dict[int, torch.Tensor] = {}
    shared: set[int] = set()
    inside = False

    def enter(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal inside
        inside = True
        tensors = [*kwargs["position_embeddings"], *filter(torch.is_tensor, [kwargs.get("attention_mask")])]
        shared.update(tensor.untyped_storage().data_ptr() for tensor in tensors)

    def leave(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal inside
        inside = False

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        is_copy = work.autocasts_weights and tuple(tensor.shape) in shapes
        if inside and pointer not in weights and not is_copy:
            kept[pointer] = tensor
        return tensor

    block.register_forward_pre_hook(enter, with_kwargs=True)
    block.register_forward_hook(leave, with_kwargs=True)
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 256
    cast = torch.autocast("cpu", torch.bfloat16) if work.outputs_upcast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        model(input_ids=ids, labels=ids)
    return sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in shared) / (BATCH * LENGTH)


def check(config: dict[str, Any] = CONFIG, **options: Any) -> None:
    spec = job(config, gpus=2, device="cpu", sequence_length=LENGTH, micro_batch=BATCH, checkpointing="none", **options)
    work = estimate(spec).work
    assert saved_bytes_per_token(spec) == pytest.approx(block_bytes(work, work.inventory.blocks[0]).saved, abs=0.5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_pure"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_ddp(method: str, precision: str, attention: str) -> None:
    check(method=method, precision=precision, attention=attention)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gathered_in_half_precision(method: str) -> None:
    check(method=method, shard="fsdp")


@pytest.mark.parametrize("shard", ["ddp", "zero2"])
def test_lora_dropout(shard: str) -> None:
    check(method="lora", shard=shard, dropout=0.1)


def test_few_lora_targets() -> None:
    check(method="lora", targets=("q_proj", "v_proj"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_norms_on_queries_and_keys(method: str) -> None:
    check(CONFIG | {"model_type": "qwen3", "head_dim": 16}, method=method)


def test_fused_projections() -> None:
    check(CONFIG | {"model_type": "phi3"}, method="full", precision="fp32")


def test_mixture_of_experts() -> None:
    config = CONFIG | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    check(config, method="full", precision="fp32")
