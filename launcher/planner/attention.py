"""What attention keeps for its backward pass, and what that pass needs besides; bytes a token and block.

Source: transformers 5.23 integrations/sdpa_attention.py, eager_attention_forward in models/llama, and the saved
tensors of torch 2.13's scaled_dot_product_attention kernels (tools/autograd/derivatives.yaml).
"""

from __future__ import annotations

from launcher.models import ARCHITECTURES
from launcher.planner.workload import Workload
from launcher.spec import Attention, Dtype
from launcher.units import round_up

FP32 = 4
LARGEST_FLASH_HEAD = 256
FLASH_CAPABILITY = (8, 0)
MASK_BYTES = 1


def query_width(work: Workload) -> int:
    """Elements of all query heads of a token."""
    return work.shape.num_attention_heads * work.shape.head_dim


def key_width(work: Workload) -> int:
    """Elements of all key heads of a token; the values are as many."""
    return work.shape.num_key_value_heads * work.shape.head_dim


def has_mask(work: Workload) -> bool:
    """Whether attention is given a mask. The job's batches carry none (jobs/collate.py): in sdpa causality is a flag,
    unless packed samples have to be kept apart; eager always builds one."""
    if work.spec.train.attention is Attention.SDPA:
        return work.spec.train.packing
    return work.spec.train.attention is Attention.EAGER


def expands_keys(work: Workload) -> bool:
    """Whether keys and values are repeated up to the query heads (repeat_kv): in eager always, in sdpa with a mask
    (use_gqa_in_sdpa). Flash attention takes grouped heads as they are."""
    repeats = has_mask(work) or work.practice.repeats_keys
    return repeats and work.shape.num_attention_heads != work.shape.num_key_value_heads


def output_is_copied(work: Workload) -> bool:
    """Whether the output projection reads a copy of what attention saves: in eager, which does not save its output,
    and where the rotary embedding concatenates (Phi-3), so that the kernel's output has another layout."""
    return work.spec.train.attention is Attention.EAGER or is_fused(work)


def value_width(work: Workload) -> int:
    """Elements held for the values: where one projection makes queries, keys and values (Phi-3), values that are not
    repeated are a view that holds all three."""
    if expands_keys(work):
        return query_width(work)
    return query_width(work) + 2 * key_width(work) if is_fused(work) else key_width(work)


def is_fused(work: Workload) -> bool:
    """Whether queries, keys and values come from one projection."""
    return ARCHITECTURES[work.shape.model_type].fused


def saved_bytes(work: Workload) -> int:
    """Query, keys, values, output and what the softmax leaves."""
    width, keys = work.compute_bytes, query_width(work) if expands_keys(work) else key_width(work)
    in_and_out = width * (2 * query_width(work) + keys + value_width(work))
    heads, length = work.shape.num_attention_heads, work.spec.train.sequence_length
    if work.spec.train.attention is not Attention.EAGER:
        # The log-sum-exp; and each block's own copy of the mask as numbers (torch 2.13
        # aten/src/ATen/native/transformers/attention.cpp, convert_boolean_attn_mask).
        return in_and_out + heads * FP32 + (length * width if has_mask(work) else 0)
    probabilities = FP32 + (width if width != FP32 else 0)  # softmax in fp32, and its copy in the compute dtype
    return in_and_out - width * query_width(work) + heads * length * (probabilities + soft_cap_bytes(work))


def soft_cap_bytes(work: Workload) -> int:
    """Per score, the tanh output that Gemma 2's soft-capping keeps."""
    return work.compute_bytes if work.shape.attn_logit_softcapping else 0


def working_bytes(work: Workload) -> int:
    """The gradients of query, keys and values; in eager also what softmax's backward pass needs of the scores."""
    width, keys = work.compute_bytes, query_width(work) if expands_keys(work) else key_width(work)
    gradients = width * (2 * query_width(work) + 2 * keys)
    if work.spec.train.attention is not Attention.EAGER:
        return gradients + (flash_scratch_bytes(work) if is_flash(work) else 0)
    heads, length = work.shape.num_attention_heads, work.spec.train.sequence_length
    return gradients + heads * length * softmax_backward_bytes(work)


def is_flash(work: Workload) -> bool:
    """Whether the flash kernel runs: on CUDA from Ampere on, in half precision, without a mask (torch 2.13
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp use_flash_attention)."""
    capability = work.spec.device.compute_capability
    return (
        work.on_cuda
        and work.compute_bytes != FP32
        and not has_mask(work)
        and work.shape.head_dim <= LARGEST_FLASH_HEAD
        and (capability is None or capability >= FLASH_CAPABILITY)
    )


def flash_scratch_bytes(work: Workload) -> int:
    """What its backward pass takes inside: the query's gradient and a row sum in fp32, heads rounded up to 32
    elements (64 above 128); where there are fewer key heads, the gradients of keys and values for every query head
    (torch 2.13 aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp mha_bwd)."""
    head, heads = work.shape.head_dim, work.shape.num_attention_heads
    in_fp32 = heads * FP32 * (1 + round_up(head, 32 if head <= 128 else 64))
    is_grouped = heads != work.shape.num_key_value_heads
    return in_fp32 + (2 * query_width(work) * work.compute_bytes if is_grouped else 0)


def softmax_backward_bytes(work: Workload) -> int:
    """Bytes a score beside what is saved, when softmax goes backward: its incoming gradient in fp32, the outgoing one,
    and on CUDA their product (torch 2.13 aten/src/ATen/native/cuda/SoftMax.cu softmax_backward_cuda_out: grad *
    output). CUDA's outgoing gradient is in the compute dtype, for it casts inside the kernel; a CPU's is in fp32 and
    cast afterwards. The probabilities in the compute dtype, saved for the product with the values, are gone by then."""
    width = work.compute_bytes
    if work.on_cuda:
        return 2 * FP32 + width - (width if width != FP32 else 0)
    return width + 2 * FP32 if width != FP32 else 2 * FP32


def forward_working_bytes(work: Workload) -> int:
    """What one forward pass of attention needs while nothing is kept: in eager the masked scores, their fp32 copy and
    the softmax of that; CUDA's softmax reads fp16 as it is, but no bf16 (torch 2.13 aten/src/ATen/native/SoftMax.cpp
    softmax)."""
    if work.spec.train.attention is not Attention.EAGER:
        return saved_bytes(work)
    width = work.compute_bytes
    is_read = width == FP32 or (work.on_cuda and work.dtypes.compute is Dtype.FLOAT16)
    kept = FP32 + (width if width != FP32 else 0) + soft_cap_bytes(work)
    at_softmax = width + (0 if is_read else FP32) + FP32
    return saved_bytes(work) + _scores(work) * (at_softmax - kept)


def returned_bytes(work: Workload) -> int:
    """The probabilities, which eager attention returns with its output: the block holds them to its end (transformers
    5.23 models/llama/modeling_llama.py LlamaDecoderLayer.forward)."""
    return _scores(work) * work.compute_bytes if work.spec.train.attention is Attention.EAGER else 0


def _scores(work: Workload) -> int:
    return work.shape.num_attention_heads * work.spec.train.sequence_length


def mask_bytes(work: Workload) -> int:
    """The causal mask with padding, one for all blocks: boolean for sdpa, additive in the compute dtype for eager."""
    train = work.spec.train
    if not has_mask(work):
        return 0
    width = MASK_BYTES if train.attention is Attention.SDPA else work.compute_bytes
    return work.spec.micro_batch * train.sequence_length**2 * width
