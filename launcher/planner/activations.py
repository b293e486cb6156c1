"""Activations over the phases of a step: what blocks keep, what one block needs while it runs, and how checkpointing
changes both."""

from __future__ import annotations

from launcher.models import Role
from launcher.planner import attention
from launcher.planner.block import FP32, BlockBytes, block_bytes
from launcher.planner.gradients import Moment
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload

SOURCE = "saved tensors of transformers 5.23 modeling_llama.py; torch 2.13 derivatives.yaml"
CHECKPOINT_SOURCE = "torch 2.13 utils/checkpoint.py: each block keeps its input"
INDEX_BYTES = 8
INDEX_TENSORS = 4  # input ids, labels, attention mask and shifted labels, int64


def activation_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Every activation but the logits. `moment` is what the backward phase stands for."""
    return (*_batch(work), *_kept(work, moment), *_running(work, moment), *_final_norm(work))


def _batch(work: Workload) -> tuple[Term, ...]:
    """The batch itself, and what all blocks share: attention mask, rotary cosine and sine."""
    phases = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.EVALUATION)
    rotary = 2 * work.spec.train.sequence_length * work.shape.head_dim * work.residual_bytes
    size = work.tokens * INDEX_BYTES * INDEX_TENSORS + attention.mask_bytes(work) + rotary
    return term(
        "batch, mask and rotary tables",
        TermKind.ACTIVATIONS,
        size,
        phases,
        formula=f"{work.tokens:,} tokens x {INDEX_TENSORS * INDEX_BYTES} B + mask + 2 x S x head_dim",
        source="transformers 5.23 masking_utils.py, modeling_llama.py LlamaRotaryEmbedding",
    )


def _kept(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """What the blocks that are not running have kept."""
    if work.checkpointing:
        per_layer = work.shape.hidden_size * work.residual_bytes
        name, source = "checkpoints", CHECKPOINT_SOURCE
        whole = per_layer * work.inventory.num_layers
        formula = f"{work.inventory.num_layers} blocks x {per_layer:,} B x {work.tokens:,} tokens"
    else:
        saved = [(block_bytes(work, block).saved, block.copies) for block in work.inventory.blocks]
        name, source = "saved activations", SOURCE
        whole = sum(size * copies for size, copies in saved) + work.shape.hidden_size * work.residual_bytes
        whole -= max(size for size, _ in saved)  # that of the block that runs is in its own term
        parts = " + ".join(f"{copies} blocks x {size:,} B" for size, copies in saved)
        formula = f"({parts} - the running block) x {work.tokens:,} tokens"
    phases = (Phase.FORWARD, Phase.LOSS, *((Phase.BACKWARD,) if moment is Moment.LAST_BLOCK else ()))
    return term(name, TermKind.ACTIVATIONS, whole * work.tokens, phases, formula=formula, source=source)


def _running(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The block that runs: forward, in the backward pass, and in evaluation."""
    kinds = [block_bytes(work, block) for block in work.inventory.blocks]
    stream = work.shape.hidden_size * work.residual_bytes
    backward = stream if moment is Moment.AFTER_BLOCKS else max(kind.backward_peak for kind in kinds)
    rates = (
        ("running block", max(forward_peak(work, kind) for kind in kinds), Phase.FORWARD),
        ("last block, saved", 0 if work.checkpointing else max(kind.saved for kind in kinds), Phase.LOSS),
        ("running block, backward", backward, Phase.BACKWARD),
        ("running block, evaluation", max(kind.forward_working for kind in kinds), Phase.EVALUATION),
    )
    return tuple(
        found
        for name, rate, phase in rates
        for found in term(
            name, TermKind.ACTIVATIONS, rate * work.tokens, (phase,), formula=_rate(rate, work), source=SOURCE
        )
    )


def forward_peak(work: Workload, kind: BlockBytes) -> int:
    """Bytes a token of a block in its forward pass: all it will keep, or, checkpointed, its largest part."""
    return kind.forward_working if work.checkpointing else max(kind.saved, kind.forward_working)


def _final_norm(work: Workload) -> tuple[Term, ...]:
    """The last hidden states: the block's output, the norm's fp32 input, and the normalised ones where the norm or
    the head is trained. Alive until the head's backward pass is over."""
    hidden = work.shape.hidden_size
    root = work.inventory.root.parameters
    norm_trained = any(p.role is Role.NORM and p.state.is_trained for p in root)
    size = hidden * (FP32 + work.compute_bytes + (work.residual_bytes if norm_trained else 0)) + FP32
    return term(
        "final norm",
        TermKind.ACTIVATIONS,
        size * work.tokens,
        (Phase.LOSS,),
        formula=_rate(size, work),
        source=SOURCE,
    )


def _rate(per_token: int, work: Workload) -> str:
    return f"{per_token:,} B x {work.tokens:,} tokens"
