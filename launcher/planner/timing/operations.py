"""Floating-point operations and memory traffic of one pass (forward, recomputation, backward) on one rank.

A product of T tokens with a matrix of n elements is 2 T n operations forward; backward it is as many for the gradient
of its input, and as many again for that of the matrix where the matrix is trained (Kaplan et al., arXiv:2001.08361,
section 2.1). Attention adds two products of every token with every other (PaLM, arXiv:2204.02311, appendix B); kernels
that know the causal mask do half of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from launcher.models import Role
from launcher.planner import recompute
from launcher.planner.inventory import Held, State
from launcher.planner.workload import Workload
from launcher.spec import CHUNK_TOKENS, ActivationCheckpointing, Attention, Loss, MethodKind, Optimizer, QuantType

PRODUCTS = (Role.LINEAR, Role.ROUTER, Role.EXPERT, Role.ADAPTER)
# Written and read around cross entropy: the bf16 logits (written, read), their fp32 copy (written, read), the
# log-softmax (written, read), its gradient (written, read) and that of the logits (written, cast to bf16).
LOSS_BYTES_PER_LOGIT = 2 + 2 + 4 + 4 + 4 + 4 + 4 + 4 + 2
# Liger: bf16 logits written, read twice by the kernel that leaves their gradient in their place, and read again.
FUSED_BYTES_PER_LOGIT = 2 + 2 + 2 + 2 + 2
# Parameter, gradient and two moments read, parameter and moments written.
STEP_BYTES = {Optimizer.ADAMW: 7, Optimizer.ADAMW_8BIT: 3, Optimizer.PAGED_ADAMW_8BIT: 3}
STATE_BYTES = {Optimizer.ADAMW: 0, Optimizer.ADAMW_8BIT: 4, Optimizer.PAGED_ADAMW_8BIT: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Operations of one pass. recomputed: what activation checkpointing and the chunked loss run a second time."""

    blocks: float
    head: float
    recomputed: float
    trained: float

    @property
    def total(self) -> float:
        """Forward, recomputation, the gradients of all inputs and those of what is trained."""
        return 2 * (self.blocks + self.head) + self.recomputed + self.trained


def operations(work: Workload) -> Operations:
    """The operations of one pass of a micro batch."""
    products = _active_numel(work, lambda _: True)
    trained = _active_numel(work, lambda parameter: parameter.state.is_trained)
    head = work.shape.vocab_size * work.shape.hidden_size
    trained += head if work.spec.method.kind is MethodKind.FULL else 0
    blocks = 2.0 * work.tokens * products + _attention(work)
    logits = 2.0 * work.tokens * head
    return Operations(
        blocks=blocks,
        head=logits,
        recomputed=blocks * recomputed_share(work) + (logits if work.spec.train.loss is Loss.CHUNKED else 0.0),
        trained=2.0 * work.tokens * trained,
    )


def recomputed_share(work: Workload) -> float:
    """How much of the blocks' forward pass activation checkpointing runs again: all of it, or the wide products."""
    match work.spec.train.activation_checkpointing:
        case ActivationCheckpointing.NONE:
            return 0.0
        case ActivationCheckpointing.FULL | ActivationCheckpointing.REENTRANT:
            return 1.0
        case ActivationCheckpointing.SELECTIVE:
            again = _active_numel(work, lambda parameter: not recompute.is_kept(work, parameter))
            eager = _attention(work) if work.spec.train.attention is Attention.EAGER else 0.0
            whole = 2.0 * work.tokens * _active_numel(work, lambda _: True) + _attention(work)
            return (2.0 * work.tokens * again + eager) / whole


def _active_numel(work: Workload, counts: Callable[[Held], bool]) -> float:
    """Elements of the blocks' matrices that a token meets: of the experts, only those it is sent to."""
    share = work.shape.num_experts_per_tok / work.shape.num_experts if work.shape.num_experts else 1.0
    return sum(
        block.copies * parameter.numel * (share if _is_of_experts(parameter) else 1.0)
        for block in work.inventory.blocks
        for parameter in block.parameters
        if parameter.role in PRODUCTS and counts(parameter)
    )


def _is_of_experts(parameter: Held) -> bool:
    return parameter.role is Role.EXPERT or ".experts." in parameter.name


def _attention(work: Workload) -> float:
    """Scores and weighted values of all layers; eager attention computes the masked half too."""
    shape, length = work.shape, work.spec.train.sequence_length
    seen: float = length if work.spec.train.attention is Attention.EAGER else length / 2
    if shape.sliding_window is not None and work.spec.train.attention is not Attention.EAGER:
        seen = min(seen, shape.sliding_window)
    return 4.0 * work.tokens * seen * shape.num_attention_heads * shape.head_dim * shape.num_layers


def dequantised_bytes(work: Workload) -> float:
    """4-bit weights are read and written out in the compute dtype for each product: forward, again where blocks are
    recomputed, and backward (bitsandbytes 0.50 autograd/_functions.py MatMul4Bit). 8-bit ones multiply as they are, and
    are written out only for the backward pass (MatMul8bitLt)."""
    numel = work.inventory.numel(State.QUANTISED)
    if work.spec.method.quant_type is QuantType.INT8:
        return numel * (1 + work.matmul_bytes)
    return (2 + recomputed_share(work)) * numel * (0.5 + work.matmul_bytes)


def loss_bytes(work: Workload) -> float:
    """Memory traffic of the loss; where it goes by chunks, with the head's, which no chunk keeps at hand."""
    logits = float(work.tokens * work.shape.vocab_size)
    match work.spec.train.loss:
        case Loss.FUSED_LINEAR:
            # Liger goes through the tokens in about V / H chunks: what a trained head's gradient gathers is fp32.
            chunks = max(1.0, work.shape.vocab_size / work.shape.hidden_size)
            return logits * FUSED_BYTES_PER_LOGIT + _reads_of_head(work, chunks, products=2)
        case Loss.CHUNKED:
            chunks = max(1.0, work.tokens / CHUNK_TOKENS)
            return logits * LOSS_BYTES_PER_LOGIT + _reads_of_head(work, chunks, products=3)
        case Loss.CROSS_ENTROPY:
            return logits * LOSS_BYTES_PER_LOGIT


def _reads_of_head(work: Workload, chunks: float, *, products: int) -> float:
    """The head is read for every product of every chunk, and a trained head's gradient read and written as often."""
    head = float(work.shape.vocab_size * work.shape.hidden_size)
    trained = 2 * 4 if work.spec.method.kind is MethodKind.FULL else 0
    return chunks * head * (products * work.matmul_bytes + trained)


def step_bytes(work: Workload, numel: float) -> float:
    """Memory traffic of AdamW over `numel` elements on the device."""
    kind, width = work.spec.train.optimizer, work.dtypes.optimizer_states.num_bytes
    return numel * (STEP_BYTES[kind] * width + STATE_BYTES[kind])
