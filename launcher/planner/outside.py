"""What a process holds beside the framework's allocator: CUDA context and NCCL, or on a CPU the interpreter."""

from __future__ import annotations

from launcher.planner import nccl, optimizer
from launcher.planner.constants import Constant, Key
from launcher.planner.terms import ALWAYS, FROM_FIRST_STEP, FROM_WRAP, term
from launcher.planner.types import Term, TermKind
from launcher.planner.workload import Workload
from launcher.precision import is_deepspeed
from launcher.units import format_bytes


def outside_terms(work: Workload) -> tuple[Term, ...]:
    """The terms of kind OUTSIDE."""
    if not work.on_cuda:
        return cpu_process_terms(work)
    context = _constant(work, Key.CUDA_CONTEXT)
    found = term(
        "CUDA context",
        TermKind.OUTSIDE,
        context.amount,
        ALWAYS,
        formula="one process",
        source=context.provenance,
    )
    return found if work.world_size == 1 else (*found, *_nccl(work))


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


def cpu_process_terms(work: Workload) -> tuple[Term, ...]:
    """The process of a rank in host RAM before any tensor of the job."""
    constant = work.constants.get(Key.CPU_PROCESS, work.spec.device, shard=work.spec.shard.kind)
    return term(
        "interpreter and libraries",
        TermKind.OUTSIDE,
        constant.amount,
        ALWAYS,
        formula="one process",
        source=constant.provenance,
    )


def num_communicators(work: Workload) -> int:
    """DeepSpeed reduces in a clone of the world's group (0.19.8 utils/groups.py _clone_world_group) beside the one that
    the Trainer uses; DDP and FSDP2 use that one (torch 2.13 distributed/device_mesh.py)."""
    return 2 if is_deepspeed(work.spec.shard.kind) else 1


def _nccl(work: Workload) -> tuple[Term, ...]:
    """What was measured for this card and number of ranks, else NCCL's own sizes for the channels that it has."""
    ranks, groups = work.spec.gpus_per_node, num_communicators(work)
    base = _constant(work, Key.NCCL_BASE)
    found = _outside("NCCL", base.amount, "kernels and records of one process", base.provenance)
    measured = work.constants.find(Key.NCCL_COMMUNICATORS, work.spec.device, num_ranks=ranks)
    if measured is not None:
        name = "NCCL communicators" if groups > 1 else "NCCL communicator"
        formula = f"{groups} x {format_bytes(measured.amount)}"
        return (*found, *_outside(name, groups * measured.amount, formula, measured.provenance))
    channels = _constant(work, Key.NCCL_CHANNELS)
    each = nccl.ring_bytes(channels.amount) + nccl.tree_bytes(channels.amount, ranks)
    half = "ring" if ranks <= 2 else "ring and tree"
    formula = f"{groups} x {half} of {channels.amount} channels, {format_bytes(nccl.connection_bytes())} each"
    found += _outside("NCCL buffers", groups * each, formula, f"launcher/planner/nccl.py; {channels.provenance}")
    switch = _constant(work, Key.NVLS_CHANNELS)
    formula = f"{switch.amount} channels x 2 MiB x {ranks} ranks of a node"
    return (
        *found,
        *_outside("NVLink SHARP buffers", nccl.nvls_bytes(switch.amount, ranks), formula, switch.provenance),
    )


def _outside(name: str, size_bytes: int, formula: str, source: str) -> tuple[Term, ...]:
    return term(name, TermKind.OUTSIDE, size_bytes, FROM_WRAP, formula=formula, source=source)


def _constant(work: Workload, key: Key) -> Constant:
    return work.constants.get(key, work.spec.device)
