"""What operations need while they run, beside what they read and write."""

from __future__ import annotations

from functools import lru_cache

from launcher.models import Role
from launcher.planner import quantisation
from launcher.planner.constants import Key
from launcher.planner.experts import merged_at, merged_forward
from launcher.planner.inventory import Block, State
from launcher.planner.moments import BEFORE_GRADIENTS, EMBEDDING, Moment, Place, Point
from launcher.planner.terms import FROM_FIRST_STEP, at, term
from launcher.planner.types import Term, TermKind
from launcher.planner.workload import Workload

MATMUL_ROLES = (Role.LINEAR, Role.HEAD, Role.ADAPTER, Role.ROUTER)  # autocast knows no grouped product of experts


def workspace_terms(work: Workload) -> tuple[Term, ...]:
    """cuBLAS' workspace."""
    return _cublas(work)


def forward_workspaces(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """What a forward pass dequantises, merges and casts."""
    runs = moment.point is Point.QUANTISED
    return (
        *merged_forward(work, moment),
        *(_int8_product(work, moment) if runs else ()),
        *_dequantised(work, moment, is_needed=runs and not multiplies_int8(work)),
        *_cast(work, moment),
    )


def multiplies_int8(work: Workload) -> bool:
    """Whether products over 8-bit weights multiply int8 by int8; a CPU writes the weights out instead
    (bitsandbytes 0.50 autograd/_functions.py matmul)."""
    return quantisation.is_8bit(work) and work.on_cuda


def _int8_product(work: Workload, moment: Moment) -> tuple[Term, ...]:
    if not multiplies_int8(work):
        return ()
    rate = quantisation.product_bytes_per_token(work)
    return at(
        moment,
        "int8 product",
        TermKind.WORKSPACES,
        rate * work.tokens,
        formula=f"widest layer, {rate:,} B x {work.tokens:,} tokens",
        source="bitsandbytes 0.50 backends/cuda/ops.py int8_vectorwise_quant, backends/default/ops.py int8_scaled_mm",
    )


def workspaces_at(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Those of one moment from the loss on."""
    return (
        *merged_at(work, moment),
        *_dequantised(work, moment, is_needed=moment.place is not None),
        *_cast(work, moment),
    )


def _dequantised(work: Workload, moment: Moment, *, is_needed: bool) -> tuple[Term, ...]:
    numel = work.inventory.largest_numel(State.QUANTISED) if is_needed else 0
    return at(
        moment,
        "dequantised weight",
        TermKind.WORKSPACES,
        numel * work.matmul_bytes,
        formula=f"largest layer, {numel:,} elements x {work.matmul_bytes} B",
        source=DEQUANTISE_SOURCE,
    )


def _cast(work: Workload, moment: Moment) -> tuple[Term, ...]:
    numel = cast_numel(work, moment)
    return at(
        moment,
        "autocast weight copies",
        TermKind.WORKSPACES,
        numel * work.matmul_bytes,
        formula=f"{numel:,} elements x {work.matmul_bytes} B",
        source=CAST_SOURCE,
    )


DEQUANTISE_SOURCE = "bitsandbytes 0.50 autograd/_functions.py MatMul4Bit, MatMul8bitLt"
CAST_SOURCE = "torch 2.13 aten/src/ATen/autocast_mode.cpp cached_cast"


def _cublas(work: Workload) -> tuple[Term, ...]:
    if not work.on_cuda:
        return ()
    constant = work.constants.get(Key.CUBLAS_WORKSPACE, work.spec.device)
    return term(
        "cuBLAS workspace",
        TermKind.WORKSPACES,
        constant.amount,
        FROM_FIRST_STEP,
        formula="one handle and stream",
        source=constant.provenance,
    )


def cast_numel(work: Workload, moment: Moment) -> int:
    """Elements that autocast holds copies of. It casts each trained fp32 weight once per forward pass and caches the
    copy until the pass is over; the backward pass holds those that were saved, which with checkpointing are the head's
    and then the running block's."""
    if not work.autocasts_weights or moment is EMBEDDING or moment.point in (Point.EMBEDDING, Point.FIRST_GATHER):
        return 0
    is_tied = work.shape.tie_word_embeddings
    each = [_cast_numel(block, is_tied) for block in work.inventory.blocks]
    blocks = sum(block.copies * numel for block, numel in zip(work.inventory.blocks, each, strict=True))
    head = _cast_numel(work.inventory.root, is_tied)
    if moment.point is not None:
        return blocks + (head if moment.point in (Point.HEAD, Point.LOSS) else 0)
    waiting = 0 if work.checkpointing else blocks
    if moment.place is None:
        return waiting + (head if moment in BEFORE_GRADIENTS else 0)
    return max(waiting, *each) if moment.place is Place.LAST else max(each)


@lru_cache(maxsize=64)
def _cast_numel(block: Block, is_tied: bool) -> int:
    """Elements of trained matrices that a matrix product reads: not norms, and an embedding only as the head."""
    roles = (*MATMUL_ROLES, Role.EMBEDDING) if is_tied else MATMUL_ROLES
    return sum(p.numel for p in block.trained if p.role in roles)
