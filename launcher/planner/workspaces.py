"""What operations need while they run, beside what they read and write."""

from __future__ import annotations

from launcher.models import Role
from launcher.planner.constants import Key
from launcher.planner.gradients import Moment
from launcher.planner.inventory import Held, State
from launcher.planner.terms import FROM_FIRST_STEP, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload

MATMUL_ROLES = (Role.LINEAR, Role.HEAD, Role.ADAPTER, Role.EXPERT, Role.ROUTER)


def workspace_terms(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """cuBLAS' workspace, dequantised weights, and autocast's copies of fp32 weights."""
    return (*_cublas(work), *_dequantised(work), *_autocast_copies(work, moment))


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


def _dequantised(work: Workload) -> tuple[Term, ...]:
    """One 4-bit weight in the compute dtype while a layer uses it (bitsandbytes 0.50 MatMul4Bit)."""
    numel = work.inventory.largest_numel(State.QUANTISED)
    return term(
        "dequantised weight",
        TermKind.WORKSPACES,
        numel * work.matmul_bytes,
        (Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION),
        formula=f"largest layer, {numel:,} elements x {work.matmul_bytes} B",
        source="bitsandbytes 0.50 autograd/_functions.py MatMul4Bit",
    )


def _autocast_copies(work: Workload, moment: Moment) -> tuple[Term, ...]:
    """Autocast casts each trained fp32 weight once per forward pass and caches the copy until the pass is over
    (torch 2.13 aten/src/ATen/autocast_mode.cpp cached_cast); the backward pass holds those that were saved, which
    with checkpointing are the running block's."""
    if not work.autocasts_weights:
        return ()
    blocks = sum(block.copies * _cast_numel(work, block.parameters) for block in work.inventory.blocks)
    head = _cast_numel(work, work.inventory.root.parameters)
    one_block = max(_cast_numel(work, block.parameters) for block in work.inventory.blocks)
    backward = 0 if moment is Moment.AFTER_BLOCKS else one_block
    if moment is Moment.LAST_BLOCK and not work.checkpointing:
        backward = blocks
    width, source = work.matmul_bytes, "torch 2.13 aten/src/ATen/autocast_mode.cpp cached_cast"
    return term(
        "autocast weight copies",
        TermKind.WORKSPACES,
        (blocks + head) * width,
        (Phase.FORWARD, Phase.LOSS, Phase.EVALUATION),
        formula=f"{blocks + head:,} elements x {width} B",
        source=source,
    ) + term(
        "autocast weight copies, backward",
        TermKind.WORKSPACES,
        backward * width,
        (Phase.BACKWARD,),
        formula=f"{backward:,} elements x {width} B",
        source=source,
    )


def _cast_numel(work: Workload, parameters: tuple[Held, ...]) -> int:
    """Elements of trained matrices that a matrix product reads: not norms, not a mere embedding."""
    roles = (*MATMUL_ROLES, Role.EMBEDDING) if work.shape.tie_word_embeddings else MATMUL_ROLES
    return sum(p.numel for p in parameters if p.state.is_trained and p.role in roles)
