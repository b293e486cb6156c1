"""Activations over the phases of a step: what blocks keep, what one block needs while it runs, and how checkpointing
changes both."""

from __future__ import annotations

from functools import lru_cache

from launcher.models import Role
from launcher.planner import attention, block_forward
from launcher.planner.block import FP32, block_bytes
from launcher.planner.gradients import is_of_embedding
from launcher.planner.inventory import Block
from launcher.planner.moments import BEFORE_GRADIENTS, EMBEDDING, HEAD, Moment, Place, Point
from launcher.planner.recompute import kept_input_bytes, kept_narrow_bytes
from launcher.planner.terms import at, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload

SOURCE = "saved tensors of transformers 5.23 modeling_llama.py; torch 2.13 derivatives.yaml"
CHECKPOINT_SOURCE = "torch 2.13 utils/checkpoint.py: each block keeps its input; launcher/planner/recompute.py"
STREAM_COPIES = 2
INDEX_BYTES = 8
INDEX_TENSORS = 4  # input ids, labels, attention mask and shifted labels, int64


def activation_terms(work: Workload) -> tuple[Term, ...]:
    """The batch, and what all blocks share."""
    return _batch(work)


def forward_activations(work: Workload, moment: Moment, num_run: int) -> tuple[Term, ...]:
    """Those of one moment of a forward pass: what blocks have kept, the residual stream, and the block that runs, with
    which so many have."""
    if moment.point in (Point.HEAD, Point.LOSS):
        return _stream(work, moment, "last hidden states", 1)
    if moment.point in (Point.NORM_GATHER, Point.HEAD_GATHER):
        return (*_kept(work, moment), *_final_norm(work, moment)) if moment.is_trained else _stream(work, moment)
    if moment.point is Point.EMBEDDING:
        return ()
    if moment.point is Point.FIRST_GATHER:
        return _stream(work, moment, copies=1)
    if moment.point is Point.NORM:
        return (*_kept(work, moment), *_norming(work, moment))
    kept = _kept_by_earlier(work, moment, num_run) if moment.is_trained else _stream(work, moment)
    if moment.point is Point.NEXT_GATHER:
        return kept
    return (*kept, *_running_forward(work, moment))


def _stream(
    work: Workload, moment: Moment, name: str = "residual stream", copies: int = STREAM_COPIES
) -> tuple[Term, ...]:
    """The residual stream between two blocks, beside the embedding's output, which its caller holds."""
    rate = copies * work.shape.hidden_size * work.residual_bytes
    return at(moment, name, TermKind.ACTIVATIONS, rate * work.tokens, formula=_rate(rate, work), source=SOURCE)


def activations_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Those of one moment: what waits for its backward pass, and what runs."""
    return (*_kept(work, moment), *_held(work, moment), *_running(work, moment), *_final_norm(work, moment))


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
        formula=f"{work.tokens:,} tokens x {INDEX_TENSORS * INDEX_BYTES} B + mask"
        f" {attention.mask_bytes(work):,} B + rotary {rotary:,} B",
        source="transformers 5.23 masking_utils.py, modeling_llama.py LlamaRotaryEmbedding",
    )


def kept_by_earlier(work: Workload, num_run: int) -> int:
    """Bytes that the blocks before the one that runs have kept; with checkpointing that has its input, too."""
    whole, _, _ = _kept_by_all(work)
    running = 0 if work.checkpointing else max(block_bytes(work, block).saved for block in work.inventory.blocks)
    return max(whole * num_run // work.inventory.num_layers - running, 0) * work.tokens


def _kept_by_earlier(work: Workload, moment: Moment, num_run: int) -> tuple[Term, ...]:
    _, formula, source = _kept_by_all(work)
    share = "" if num_run == work.inventory.num_layers else f" x {num_run} of {work.inventory.num_layers} blocks"
    return at(
        moment,
        "kept by earlier blocks",
        TermKind.ACTIVATIONS,
        kept_by_earlier(work, num_run),
        formula=f"({formula}{share}{'' if work.checkpointing else ' - the running block'}) x {work.tokens:,} tokens",
        source=source,
    )


def _running_forward(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The block that runs forward; in an evaluation, and where it will be recomputed, nothing is kept of it."""
    assert moment.point is not None
    is_saving = moment.is_trained and not work.checkpointing
    rate = max(block_forward.bytes_at(work, kind, moment.point, is_saving=is_saving) for kind in work.inventory.blocks)
    return at(
        moment,
        "running block",
        TermKind.ACTIVATIONS,
        rate * work.tokens,
        formula=_rate(rate, work),
        source=block_forward.SOURCE,
    )


def _norming(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The final norm at its end: the last block's output, the normalised one in fp32, and the answer; where the stream
    is not fp32, also its fp32 copy and the normalised one cast back."""
    stream = work.residual_bytes
    copies = 0 if stream == FP32 else FP32 + stream
    rate = work.shape.hidden_size * (stream + FP32 + stream + copies)
    return at(
        moment,
        "final norm, running",
        TermKind.ACTIVATIONS,
        rate * work.tokens,
        formula=_rate(rate, work),
        source="transformers 5.23 models/llama/modeling_llama.py LlamaRMSNorm.forward",
    )


@lru_cache(maxsize=16)
def _kept_by_all(work: Workload) -> tuple[int, str, str]:
    """Bytes a token that all blocks keep together, how they are counted, and the source of that."""
    stream = work.shape.hidden_size * work.residual_bytes
    if work.checkpointing:
        kept = [(stream + _kept_besides(work, block), block.copies) for block in work.inventory.blocks]
        parts = " + ".join(f"{copies} blocks x {size:,} B" for size, copies in kept)
        return sum(size * copies for size, copies in kept), parts, CHECKPOINT_SOURCE
    saved = [(block_bytes(work, block).saved, block.copies) for block in work.inventory.blocks]
    parts = " + ".join(f"{copies} blocks x {size:,} B" for size, copies in saved)
    unneeded = _first_norm(work)
    whole = sum(size * copies for size, copies in saved) + stream - unneeded
    return whole, f"{parts} + {stream:,} B" + (f" - {unneeded:,} B" if unneeded else ""), SOURCE


def _first_norm(work: Workload) -> int:
    """What the first block's first norm does not keep: all of it where its input, a frozen embedding's, needs no
    gradient. Checkpointing makes it need one (peft 0.21 peft_model.py _prepare_model_for_gradient_checkpointing). A
    block alone counts as the one that runs."""
    is_needed = any(is_of_embedding(p) for p in work.inventory.root.trained) or work.inventory.num_layers == 1
    return 0 if is_needed else block_bytes(work, work.inventory.blocks[0]).first_norm


def _kept_besides(work: Workload, block: Block) -> int:
    """What a checkpointed block keeps besides its input."""
    return kept_narrow_bytes(work, block) + kept_input_bytes(work, block)


def _kept(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """What blocks that are not running have kept; a checkpointed one that runs, its input too."""
    if moment is EMBEDDING:
        return ()
    whole, formula, source = _kept_by_all(work)
    if moment.place is not None and not work.checkpointing:
        running = max(block_bytes(work, block).saved for block in work.inventory.blocks)
        whole, formula = whole - running, f"{formula} - {running:,} B of the running block"
    if moment.place is not None and work.checkpointing:
        used = max(kept_narrow_bytes(work, block) for block in work.inventory.blocks)
        whole, formula = whole - used, f"{formula} - {used:,} B of the running block" if used else formula
    if moment.place is Place.FIRST and not work.practice.holds_block_inputs:
        inputs = max(kept_input_bytes(work, block) for block in work.inventory.blocks) if work.checkpointing else 0
        whole = work.shape.hidden_size * work.residual_bytes + inputs
        formula = f"the first block's input, {whole:,} B"
    name = "checkpoints" if work.checkpointing else "saved activations"
    return at(
        moment,
        name,
        TermKind.ACTIVATIONS,
        whole * work.tokens,
        formula=f"({formula}) x {work.tokens:,} tokens",
        source=source,
    )


def _held(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """By the first block's turn, the gradients of all blocks' inputs, where hooks hold those with their inputs: all
    but the first block's own, and the one that runs."""
    if moment.place is not Place.FIRST or not (work.checkpointing and work.practice.holds_block_inputs):
        return ()
    rate = (work.inventory.num_layers - 2) * work.shape.hidden_size * work.residual_bytes
    return at(
        moment,
        "gradients of earlier blocks' inputs",
        TermKind.ACTIVATIONS,
        rate * work.tokens,
        formula=_rate(rate, work),
        source="torch 2.13 distributed/fsdp/_runtime_utils.py _register_post_backward_reshard_only_hook",
    )


def _running(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The block that runs backward; outside the blocks, the gradient of the residual stream."""
    if moment in BEFORE_GRADIENTS:
        return ()
    if moment.part is None:
        rate = work.shape.hidden_size * work.residual_bytes
    else:
        rate = max(block_bytes(work, block).backward_peak(moment.part) for block in work.inventory.blocks)
    name = "gradient of the residual stream" if moment.part is None else f"running block, {moment.part}"
    return at(moment, name, TermKind.ACTIVATIONS, rate * work.tokens, formula=_rate(rate, work), source=SOURCE)


def _final_norm(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """The last hidden states: the block's output, the norm's fp32 input, and the normalised ones where the norm or
    the head is trained. Alive until the head's backward pass is over."""
    if moment not in (*BEFORE_GRADIENTS, HEAD) and moment.point not in (Point.NORM_GATHER, Point.HEAD_GATHER):
        return ()
    hidden = work.shape.hidden_size
    root = work.inventory.root.parameters
    norm_trained = any(p.role is Role.NORM and p.state.is_trained for p in root)
    size = hidden * (FP32 + work.compute_bytes + (work.residual_bytes if norm_trained else 0)) + FP32
    return at(moment, "final norm", TermKind.ACTIVATIONS, size * work.tokens, formula=_rate(size, work), source=SOURCE)


def _rate(per_token: int, work: Workload) -> str:
    return f"{per_token:,} B x {work.tokens:,} tokens"
