"""Practice: what a training loop and its packages do with memory that a JobSpec does not say.

The default is our own job with the pinned packages, so a plan for it needs no thought of this. Another value lets the
same formulas answer for a measurement that somebody published: an older transformers that copies the logits once
more, a loop that keeps the model's outputs through the backward pass, peft's preparation of a quantised model.

Every rule that depends on a package's version names the version and the file. None was fitted to a measurement.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.spec import Dtype

if TYPE_CHECKING:
    from launcher.precision import Dtypes

SHIFTED_COPY_UNTIL = (4, 48)
HALF_LOGITS_DROPPED_UNTIL = (4, 45)


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    """What a loop does beyond its JobSpec.

    autocast: mixed precision runs under torch.autocast; False where a loop mixes dtypes by storing them so.
    unquantised_dtype: frozen parameters that are not quantised; None for the compute dtype. fp32 after peft's
    prepare_model_for_kbit_training (peft 0.13 to 0.21 utils/other.py), whose activations are then fp32, too:
    bitsandbytes' Linear4bit answers in its input's dtype (nn/modules.py Linear4bit.forward).
    norm_dtype: the norms of a quantised model; None for that of the other unquantised parameters. fp32 beside a bf16
    embedding and head after trl's peft_module_casting_to_bf16 (trl 0.11 to 0.13 trainer/utils.py). A norm answers in
    its weight's dtype, and with it every layer of the block.
    adapter_dtype: LoRA's parameters, their gradients and moments; None for what the precision says. fp32 where
    get_peft_model upcasts them (autocast_adapter_dtype, peft 0.12 on).
    shifted_logits_copy: the loss copies the fp32 logits to shift them (transformers up to 4.48).
    drops_half_logits: the model's forward replaces the logits by their fp32 copy before the loss is computed, so that
    the half-precision ones are gone (transformers up to 4.45; granite up to 4.48).
    keeps_outputs: the loop holds the model's outputs, and so the logits, until the backward pass is over.
    repeats_keys: keys and values are repeated to the query heads whatever the attention.
    compiled: torch.compile fuses what lies between the products of a block, so that norms, rotary embeddings and the
    MLP's activation make no temporaries.
    foreach: the optimizer steps all tensors at once and needs temporaries of their size (torch optim/adam.py
    _multi_tensor_adam, the default of torch.optim.AdamW on CUDA); None for what the job asks for.
    holds_block_inputs: FSDP1 over frozen blocks with reentrant checkpointing. Its hook on a frozen block's inputs
    (torch distributed/fsdp/_runtime_utils.py _register_post_backward_reshard_only_hook) refers to their gradient
    accumulators until the whole backward pass is over, and each of those holds the block's detached input and its
    gradient (torch/utils/checkpoint.py detach_variable makes it a leaf).
    expandable_segments: the allocator grows its segments (PYTORCH_CUDA_ALLOC_CONF); torch's own default is not to.
    """

    autocast: bool = True
    unquantised_dtype: Dtype | None = None
    norm_dtype: Dtype | None = None
    adapter_dtype: Dtype | None = None
    shifted_logits_copy: bool = False
    drops_half_logits: bool = False
    keeps_outputs: bool = False
    repeats_keys: bool = False
    compiled: bool = False
    foreach: bool | None = None
    holds_block_inputs: bool = False
    expandable_segments: bool = True

    @property
    def block_dtype(self) -> Dtype | None:
        """What a quantised model's norms hand to its blocks; None for the compute dtype."""
        return self.norm_dtype or self.unquantised_dtype


OURS = Practice()


def shifts_logits_by_copy(transformers: tuple[int, int]) -> bool:
    """Whether ForCausalLMLoss makes a contiguous shifted copy of the fp32 logits.

    Up to 4.48 it does (loss/loss_utils.py: logits[..., :-1, :].contiguous()); from 4.49 on it pads the labels.
    """
    return transformers <= SHIFTED_COPY_UNTIL


def drops_half_logits(transformers: tuple[int, int]) -> bool:
    """Whether a model's forward rebinds `logits` to its fp32 copy (up to 4.45, models/*/modeling_*.py: logits =
    logits.float()); from 4.46 on the loss is a function that makes the copy while its caller holds the original."""
    return transformers <= HALF_LOGITS_DROPPED_UNTIL


def practised(dtypes: Dtypes, practice: Practice) -> Dtypes:
    """The dtypes of a job under a practice."""
    if practice.unquantised_dtype is not None and dtypes.frozen is not None:
        dtypes = dataclasses.replace(dtypes, frozen=practice.unquantised_dtype)
    if practice.adapter_dtype is not None and dtypes.frozen is not None:
        adapter = practice.adapter_dtype
        dtypes = dataclasses.replace(dtypes, trained=adapter, gradients=adapter, optimizer_states=adapter)
    return dtypes
