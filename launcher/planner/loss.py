"""Logits and loss: the largest tensors of a small model, and of long sequences.

Materialised: transformers 5.23 loss/loss_utils.py ForCausalLMLoss takes the logits to fp32 and hands them to
cross_entropy. In the forward pass there are the logits, their fp32 copy and the log-softmax; in the backward pass
the log-softmax, its incoming gradient and its outgoing one, and the logits again where the loop still holds them. Up
to transformers 4.48 a shifted contiguous fp32 copy comes on top in the forward pass.

Chunked: the job's own loss has the same for some tokens at a time (jobs/chunked_loss.py), and collects the gradients
of the hidden states and of a trained head over the chunks.

Fused: Liger's linear cross entropy never holds all logits (liger-kernel 0.8 ops/fused_linear_cross_entropy.py): one
chunk of them, the gradient of its input, and the head's gradient where the head is trained.
"""

from __future__ import annotations

from launcher.models import Role
from launcher.planner.inventory import Held, State
from launcher.planner.moments import LOSS, Moment
from launcher.planner.terms import at
from launcher.planner.types import Term, TermKind
from launcher.planner.workload import Workload
from launcher.spec import CHUNK_TOKENS, Loss
from launcher.units import ceil_div

FP32 = 4
HF_SOURCE = "transformers 5.23 loss/loss_utils.py ForCausalLMLoss; torch 2.13 log_softmax and nll_loss"
CHUNKED_SOURCE = "jobs/chunked_loss.py; torch 2.13 utils/checkpoint.py, csrc/autograd/input_buffer.cpp"
LIGER_SOURCE = "liger-kernel 0.8 ops/fused_linear_cross_entropy.py"


def forward_bytes_per_logit(logit_bytes: int, *, shifted_copy: bool = False, drops_half: bool = False) -> int:
    """Logits (gone where drops_half, transformers <= 4.45), their fp32 copy (none where they are fp32), log-softmax;
    and the shifted copy of transformers <= 4.48."""
    held = logit_bytes if logit_bytes != FP32 and not drops_half else 0
    return held + FP32 + FP32 + (FP32 if shifted_copy else 0)


def backward_bytes_per_logit(logit_bytes: int = 0) -> int:
    """Log-softmax and its two gradients; and logit_bytes where the loop still holds the logits themselves."""
    return 3 * FP32 + logit_bytes


def forward_rate(work: Workload) -> int:
    """Bytes of one logit at the loss."""
    practice = work.practice
    return forward_bytes_per_logit(
        work.logit_bytes, shifted_copy=practice.shifted_logits_copy, drops_half=practice.drops_half_logits
    )


def evaluated_tokens(work: Workload) -> int:
    """Tokens whose logits an evaluation has at a time, without gradients; Liger, too, computes all of them there."""
    return _one_chunk(work) if work.spec.train.loss is Loss.CHUNKED else work.tokens


def _soft_cap(work: Workload, logits: int) -> int:
    """Gemma 2's final soft-capping keeps its tanh."""
    return logits * work.logit_bytes if work.shape.final_logit_softcapping else 0


def _one_chunk(work: Workload) -> int:
    return min(CHUNK_TOKENS, work.tokens)


def chunked_bytes(work: Workload) -> dict[str, int]:
    """The backward pass at its high points, by what it does there. It goes from the last chunk to the first.

    Gradients of the hidden states gather chunk by chunk. A trained head's gradient is made by each chunk; the first
    two are added into a third, and those after them in place (InputBuffer::accumulate: a transposed gradient is not
    added to). The hidden states, which the checkpoints hold, are the final norm's.
    """
    vocab, hidden, width = work.shape.vocab_size, work.shape.hidden_size, work.compute_bytes
    num_chunks = ceil_div(work.tokens, CHUNK_TOKENS)
    logits = _one_chunk(work) * vocab
    rate = max(forward_bytes_per_logit(work.logit_bytes), backward_bytes_per_logit())
    inputs = work.tokens * hidden * width
    per_chunk = _one_chunk(work) * hidden * width
    head = vocab * hidden * _head_gradient_bytes(work)
    several = num_chunks > 1
    return {
        "a chunk's softmax": logits * rate + _soft_cap(work, logits) + inputs - per_chunk + several * head,
        "a chunk's products": logits * width + inputs + (1 + several) * head,
        "adding the head's gradients": several * (2 * per_chunk + 3 * head),
    }


def chunked_forward_bytes(work: Workload) -> dict[str, int]:
    """The forward pass: one chunk's logits and log-softmax, gone before the next's."""
    logits = _one_chunk(work) * work.shape.vocab_size
    return {"a chunk's log-softmax": logits * forward_rate(work) + _soft_cap(work, logits)}


def chunked_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Either pass at its highest point."""
    sizes = chunked_forward_bytes(work) if moment is LOSS else chunked_bytes(work)
    highest = max(sizes, key=lambda point: sizes[point])
    return at(
        moment,
        "chunked loss",
        TermKind.LOGITS,
        sizes[highest],
        formula=f"{highest}: {_one_chunk(work):,} of {work.tokens:,} tokens x {work.shape.vocab_size:,} logits; "
        f"{work.shape.hidden_size:,} x {work.compute_bytes} B a token; head's gradient {_head_gradient_bytes(work)} B",
        source=CHUNKED_SOURCE,
    )


def _head_gradient_bytes(work: Workload) -> int:
    """Bytes an element of the head's gradient before it is reduced; 0 where the head is frozen."""
    return work.gathered_bytes(State.TRAINED) if any(p.state.is_trained for p in _head(work)) else 0


def chunk_tokens(tokens: int, vocab_size: int, hidden_size: int) -> int:
    """Tokens in one of Liger's chunks: a power of two, so that a chunk of logits is about as large as its input."""
    wanted = ceil_div(tokens, ceil_div(vocab_size, hidden_size))
    return min(1 << (wanted - 1).bit_length(), tokens)


def fused_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """One chunk of logits, overwritten by its gradient; the gradient of all hidden states; and where the head is
    trained its gradient, in the head's own dtype."""
    vocab, hidden, width = work.shape.vocab_size, work.shape.hidden_size, work.compute_bytes
    chunk = chunk_tokens(work.tokens, vocab, hidden)
    head_width = _head_gradient_bytes(work)
    return at(
        moment,
        "fused loss",
        TermKind.LOGITS,
        chunk * vocab * width + work.tokens * hidden * width + vocab * hidden * head_width,
        formula=f"{chunk:,} x {vocab:,} x {width} B + {work.tokens:,} x {hidden:,} x {width} B"
        f" + {vocab:,} x {hidden:,} x {head_width} B",
        source=LIGER_SOURCE,
    )


def _head(work: Workload) -> list[Held]:
    """The head's weight: the embedding's where they are tied."""
    wanted = Role.EMBEDDING if work.shape.tie_word_embeddings else Role.HEAD
    return [p for p in work.inventory.root.parameters if p.role is wanted]
