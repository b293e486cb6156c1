"""What a process holds beside the framework's allocator: CUDA context and NCCL, or on a CPU the interpreter."""

from __future__ import annotations

from launcher.planner import constants, optimizer
from launcher.planner.terms import ALWAYS, FROM_FIRST_STEP, FROM_WRAP, term
from launcher.planner.types import Term, TermKind
from launcher.planner.workload import Workload
from launcher.precision import is_deepspeed


def outside_terms(work: Workload) -> tuple[Term, ...]:
    """The terms of kind OUTSIDE."""
    if not work.on_cuda:
        return _cpu_process(work)
    context = constants.cuda_context(work.spec.device.compute_capability)
    terms = term(
        "CUDA context",
        TermKind.OUTSIDE,
        context.size_bytes,
        ALWAYS,
        formula="one process",
        source=context.provenance,
    )
    if work.world_size > 1:
        nccl = constants.NCCL_COMMUNICATOR
        terms += term(
            "NCCL", TermKind.OUTSIDE, nccl.size_bytes, FROM_WRAP, formula="one communicator", source=nccl.provenance
        )
    return terms


def managed_term(work: Workload, tensors: tuple[tuple[int, int], ...]) -> tuple[Term, ...]:
    """Paged optimizer states; they count against the device until the driver pages them out."""
    return term(
        "paged optimizer states",
        TermKind.OUTSIDE,
        optimizer.managed_bytes(work.spec.train.optimizer, tensors),
        FROM_FIRST_STEP,
        formula="2 B an element of tensors with at least 100,000",
        source=optimizer.SOURCES[work.spec.train.optimizer],
    )


def _cpu_process(work: Workload) -> tuple[Term, ...]:
    found = [("interpreter and libraries", constants.CPU_PROCESS)]
    if is_deepspeed(work.spec.shard.kind):
        found.append(("DeepSpeed", constants.CPU_DEEPSPEED))
    return tuple(
        made
        for name, constant in found
        for made in term(
            name, TermKind.OUTSIDE, constant.size_bytes, ALWAYS, formula="one process", source=constant.provenance
        )
    )
