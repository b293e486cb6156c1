"""Which practice a row was measured under: its loop, told by where it was published, and its packages' versions."""

from __future__ import annotations

from launcher.planner.practice import Practice, drops_half_logits, shifts_logits_by_copy
from launcher.spec import Dtype, Loss, MethodKind, Precision, ShardKind

from .cases import Case
from .reading import Sharding, Unmodelled, read_version

# peft 0.12 tuners_utils.py: get_peft_model(autocast_adapter_dtype=True) keeps adapters of half-precision models fp32.
FP32_ADAPTERS_FROM = (0, 12)


def practice_of(case: Case, method: MethodKind, sharding: Sharding, precision: Precision, loss: Loss) -> Practice:
    """The practice of a row; Unmodelled where a version that matters is not stated."""
    if "fitcheck" in case.source.lower():
        return fitcheck(method)
    if "prime-rl" in case.source.lower():
        return prime()
    return trainer(case, method, sharding, precision, loss)


def fitcheck(method: MethodKind) -> Practice:
    """fitcheck-llm 0.3.1 scripts/measure.py: a bare loop without autocast that holds `out` while it goes backward, with
    torch.optim.AdamW as it comes, K and V repeated for sdpa, and peft's stock preparation of a quantised model."""
    return Practice(
        autocast=False,
        unquantised_dtype=Dtype.FLOAT32 if method is MethodKind.QLORA else None,
        adapter_dtype=Dtype.FLOAT32,
        keeps_outputs=True,
        repeats_keys=True,
        foreach=True,
        expandable_segments=False,
    )


def prime() -> Practice:
    """prime-rl trainer/sft/train.py and trainer/model.py: FSDP2 over fp32 parameters, torch.optim.AdamW as it comes,
    blocks compiled. The model's output holds fp32 logits (cast_float_and_contiguous) and lives through the backward
    pass: `del logits` leaves `out`, which a later version deletes, too."""
    return Practice(foreach=True, compiled=True, keeps_outputs=True, drops_half_logits=True)


def trainer(case: Case, method: MethodKind, sharding: Sharding, precision: Precision, loss: Loss) -> Practice:
    """transformers' Trainer, or a loop that is taken for one."""
    version = read_version(case, "transformers")
    peft = read_version(case, "peft")
    adapter_dtype = None
    upcasts = sharding.kind is ShardKind.DDP or (sharding.label == "fsdp1" and method is MethodKind.LORA)
    if method is not MethodKind.FULL and upcasts and peft and peft >= FP32_ADAPTERS_FROM:
        adapter_dtype = Dtype.FLOAT32
    is_hf_loss = "hf" in case.text("loss") or "causallm" in case.text("loss")
    if loss is Loss.CROSS_ENTROPY and is_hf_loss and version is None and case.text("versions").startswith("see "):
        raise Unmodelled("the version of transformers is not stated")
    return Practice(
        adapter_dtype=adapter_dtype,
        norm_dtype=Dtype.FLOAT32 if _is_prepared_by_trl(case, method, sharding, precision) else None,
        shifted_logits_copy=bool(is_hf_loss and version and shifts_logits_by_copy(version)),
        drops_half_logits=bool(is_hf_loss and version and drops_half_logits(version)),
        holds_block_inputs=_has_frozen_fsdp1_blocks(case, method, sharding),
        foreach="fused" not in case.text("optimizer"),
        expandable_segments="expandable_segments" in case.text("sharding", "notes", "secondary"),
    )


def _is_prepared_by_trl(case: Case, method: MethodKind, sharding: Sharding, precision: Precision) -> bool:
    """Whether trl prepared the quantised model: prepare_model_for_kbit_training, then embedding and head back to bf16,
    which leaves the norms fp32 (trl 0.13 trainer/utils.py peft_module_casting_to_bf16). Not under FSDP, where it finds
    the weights on the CPU (trainer/sft_trainer.py is_sharded_qlora)."""
    quantised = method is MethodKind.QLORA and sharding.kind is ShardKind.DDP
    return quantised and precision is Precision.BF16_MIXED and "stock prepare" in case.text("notes")


def _has_frozen_fsdp1_blocks(case: Case, method: MethodKind, sharding: Sharding) -> bool:
    """Whether FSDP1 wraps frozen blocks that are checkpointed in torch's reentrant form, the Trainer's default up to
    transformers 4 (trainer.py: gradient_checkpointing_kwargs None)."""
    reentrant = "use_reentrant=false" not in case.text("grad_checkpointing")
    return sharding.label == "fsdp1" and method is not MethodKind.FULL and reentrant
