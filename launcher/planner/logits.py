"""Logits at each moment: on their way to the loss, and back."""

from __future__ import annotations

from launcher.planner.loss import (
    FP32,
    HF_SOURCE,
    backward_bytes_per_logit,
    chunked_at,
    evaluated_tokens,
    forward_bytes_per_logit,
    forward_rate,
    fused_terms,
)
from launcher.planner.moments import HEAD, HEAD_FORWARD, LOSS, LOSS_BACKWARD, Moment, Point
from launcher.planner.terms import at
from launcher.planner.types import Term, TermKind
from launcher.planner.workload import Workload
from launcher.spec import Loss


def evaluated_logits(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Those of an evaluation: as the head gives them, then with their fp32 copy and log-softmax."""
    if moment.is_trained or moment.point not in (Point.HEAD, Point.LOSS):
        return ()
    rate = work.logit_bytes if moment.point is Point.HEAD else forward_rate(work)
    tokens = evaluated_tokens(work)
    return at(
        moment,
        "logits in evaluation",
        TermKind.LOGITS,
        tokens * work.shape.vocab_size * rate,
        formula=f"{tokens:,} tokens x {work.shape.vocab_size:,} x {rate} B",
        source=HF_SOURCE,
    )


def logits_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Those of one moment. Liger's loss has its one peak, in the forward pass, where its backward pass is, too."""
    if work.spec.train.loss is Loss.CROSS_ENTROPY:
        return _materialised(work, moment)
    if moment not in (LOSS, LOSS_BACKWARD):
        return ()
    if work.spec.train.loss is Loss.CHUNKED:
        return chunked_at(work, moment)
    return fused_terms(work, moment)


def _materialised(work: Workload, moment: Moment) -> tuple[Term, ...]:
    rate = _bytes_per_logit(work, moment)
    logits = work.tokens * work.shape.vocab_size
    return at(
        moment,
        NAMES.get(moment, "logits held by the loop"),
        TermKind.LOGITS,
        logits * rate,
        formula=f"{work.tokens:,} tokens x {work.shape.vocab_size:,} x {rate} B",
        source=HF_SOURCE,
    )


def _bytes_per_logit(work: Workload, moment: Moment) -> int:
    """Gemma 2's final soft-capping keeps its tanh until its own backward pass; a loop may hold the logits all along."""
    practice, width = work.practice, work.logit_bytes
    soft_cap = width if work.shape.final_logit_softcapping else 0
    held = _held_bytes(work) if practice.keeps_outputs else 0
    if moment is LOSS:
        return soft_cap + forward_bytes_per_logit(
            width, shifted_copy=practice.shifted_logits_copy, drops_half=practice.drops_half_logits
        )
    if moment is LOSS_BACKWARD:
        return backward_bytes_per_logit(held) + soft_cap
    return width + held if moment in (HEAD_FORWARD, HEAD) else held


def _held_bytes(work: Workload) -> int:
    """Bytes of one logit of the model's output."""
    return FP32 if work.practice.drops_half_logits else work.logit_bytes


NAMES = {
    HEAD_FORWARD: "logits",
    LOSS: "logits and log-softmax",
    LOSS_BACKWARD: "log-softmax and its gradients",
    HEAD: "gradient of the logits",
}
