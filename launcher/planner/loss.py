"""Logits and loss: the largest tensors of a small model, and of long sequences.

Materialised: transformers 5.23 loss/loss_utils.py ForCausalLMLoss takes the logits to fp32 and hands them to
cross_entropy. In the forward pass there are the logits, their fp32 copy and the log-softmax; in the backward pass
the log-softmax, its incoming gradient and its outgoing one, and the logits again where the loop still holds them. Up
to transformers 4.48 a shifted contiguous fp32 copy comes on top in the forward pass.

Fused: Liger's linear cross entropy never holds all logits (liger-kernel 0.8 ops/fused_linear_cross_entropy.py): one
chunk of them, the gradient of its input, and the head's gradient where the head is trained.
"""

from __future__ import annotations

from launcher.models import Role
from launcher.planner.inventory import Held, State
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.spec import Loss
from launcher.units import ceil_div

FP32 = 4
HF_SOURCE = "transformers 5.23 loss/loss_utils.py ForCausalLMLoss; torch 2.13 log_softmax and nll_loss"
LIGER_SOURCE = "liger-kernel 0.8 ops/fused_linear_cross_entropy.py"


def forward_bytes_per_logit(logit_bytes: int, *, shifted_copy: bool = False) -> int:
    """Logits, their fp32 copy (none where they are fp32), log-softmax; and the shifted copy of transformers <= 4.48."""
    upcast = FP32 if logit_bytes != FP32 else 0
    return logit_bytes + upcast + FP32 + (FP32 if shifted_copy else 0)


def backward_bytes_per_logit(logit_bytes: int = 0) -> int:
    """Log-softmax and its two gradients; and logit_bytes where the loop still holds the logits themselves."""
    return 3 * FP32 + logit_bytes


def bytes_per_logit(work: Workload) -> int:
    """The larger of both passes."""
    practice = work.practice
    held = work.logit_bytes if practice.keeps_outputs else 0
    forward = forward_bytes_per_logit(work.logit_bytes, shifted_copy=practice.shifted_logits_copy)
    return max(forward, backward_bytes_per_logit(held))


def loss_terms(work: Workload) -> tuple[Term, ...]:
    """The terms of the chosen loss, training and evaluation."""
    if work.spec.train.loss is Loss.FUSED_LINEAR:
        return (*_fused(work), *_evaluation(work))
    return (*_materialised(work), *_evaluation(work))


def _materialised(work: Workload) -> tuple[Term, ...]:
    rate = bytes_per_logit(work)
    logits = work.tokens * work.shape.vocab_size
    return term(
        "logits, log-softmax and gradients",
        TermKind.LOGITS,
        logits * rate + _soft_cap(work, logits),
        (Phase.LOSS,),
        formula=f"{work.tokens:,} tokens x {work.shape.vocab_size:,} x {rate} B",
        source=HF_SOURCE,
    )


def _soft_cap(work: Workload, logits: int) -> int:
    """Gemma 2's final soft-capping keeps its tanh."""
    return logits * work.logit_bytes if work.shape.final_logit_softcapping else 0


def chunk_tokens(tokens: int, vocab_size: int, hidden_size: int) -> int:
    """Tokens in one of Liger's chunks: a power of two, so that a chunk of logits is about as large as its input."""
    wanted = ceil_div(tokens, ceil_div(vocab_size, hidden_size))
    return min(1 << (wanted - 1).bit_length(), tokens)


def _fused(work: Workload) -> tuple[Term, ...]:
    """One chunk of logits, overwritten by its gradient; the gradient of all hidden states; and where the head is
    trained its gradient, in the head's own dtype."""
    vocab, hidden, width = work.shape.vocab_size, work.shape.hidden_size, work.compute_bytes
    chunk = chunk_tokens(work.tokens, vocab, hidden)
    head_trained = any(p.state.is_trained for p in _head(work))
    head_width = work.gathered_bytes(State.TRAINED) if head_trained else 0
    return term(
        "fused loss",
        TermKind.LOGITS,
        chunk * vocab * width + work.tokens * hidden * width + vocab * hidden * head_width,
        (Phase.LOSS,),
        formula=f"{chunk:,} x {vocab:,} x {width} B + {work.tokens:,} x {hidden:,} x {width} B"
        f" + {vocab:,} x {hidden:,} x {head_width} B",
        source=LIGER_SOURCE,
    )


def _head(work: Workload) -> list[Held]:
    """The head's weight: the embedding's where they are tied."""
    wanted = Role.EMBEDDING if work.shape.tie_word_embeddings else Role.HEAD
    return [p for p in work.inventory.root.parameters if p.role is wanted]


def _evaluation(work: Workload) -> tuple[Term, ...]:
    """Evaluation has logits and no gradients; Liger, too, computes them there."""
    rate = forward_bytes_per_logit(work.logit_bytes, shifted_copy=work.practice.shifted_logits_copy)
    return term(
        "logits in evaluation",
        TermKind.LOGITS,
        work.tokens * work.shape.vocab_size * rate,
        (Phase.EVALUATION,),
        formula=f"{work.tokens:,} tokens x {work.shape.vocab_size:,} x {rate} B",
        source=HF_SOURCE,
    )
