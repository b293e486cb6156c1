"""Amounts that no formula gives, in one table with where each comes from.

A row is used only for what its basis says: 'measured' by this project, 'published' by the named source, or
'assumed' where nobody has published a figure that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from launcher.units import MIB


class Basis(StrEnum):
    MEASURED = "measured"
    PUBLISHED = "published"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Bytes with their provenance."""

    size_bytes: int
    basis: Basis
    source: str

    @property
    def provenance(self) -> str:
        """Basis and source in one line, as a term's source."""
        return f"{self.basis}: {self.source}"


# The CPU process: the peak RSS of jobs.train less its allocator's peak, in eleven runs on two ranks (torch 2.13.0+cpu,
# transformers 5.23.0, deepspeed 0.19.8, x86-64, one thread): 572 to 745 MiB with tiny models, 832 with SmolLM2-135M.
# 480 MiB of it is there after the imports. The largest counts: a plan that errs low lets the kernel kill the job.
CPU_PROCESS = Constant(
    size_bytes=832 * MIB,
    basis=Basis.MEASURED,
    source="peak RSS less allocated bytes of jobs.train on two CPU ranks, the largest of eleven runs",
)
CPU_DEEPSPEED = Constant(
    size_bytes=25 * MIB, basis=Basis.MEASURED, source="psutil, growth when deepspeed 0.19.8 is imported"
)

CUDA_CONTEXT = Constant(
    size_bytes=481 * MIB,
    basis=Basis.PUBLISHED,
    source="0.47 GiB with lazy loading, A100, torch 2.1.1: ml-engineering training/performance README",
)
CUDA_CONTEXT_TURING = Constant(
    size_bytes=147_718_144,
    basis=Basis.PUBLISHED,
    source="140.875 MiB, process less reserved, T4, torch 2.10: fitcheck-llm 0.3.1 data/measurements",
)
NCCL_COMMUNICATOR = Constant(
    size_bytes=616 * MIB,
    basis=Basis.PUBLISHED,
    source="544-688 MB per communicator on 4xA100: github.com/NVIDIA/nccl issue 964, middle of the range",
)
CUBLAS_WORKSPACE_HOPPER = Constant(
    size_bytes=32 * MIB,
    basis=Basis.PUBLISHED,
    source="torch 2.13 aten/src/ATen/cuda/CublasHandlePool.cpp, compute capability 9.0, 10.0 and 12.0",
)
CUBLAS_WORKSPACE = Constant(
    size_bytes=8_519_680,
    basis=Basis.PUBLISHED,
    source="torch 2.13 aten/src/ATen/cuda/CublasHandlePool.cpp: 2 x 4096 KiB + 8 x 16 KiB",
)

HOPPER_MAJORS = (9, 10, 12)
TURING = (7, 5)


def cuda_context(compute_capability: tuple[int, int] | None) -> Constant:
    """The driver's context for one process; the larger figure for every card but Turing, for want of others."""
    return CUDA_CONTEXT_TURING if compute_capability == TURING else CUDA_CONTEXT


def cublas_workspace(compute_capability: tuple[int, int] | None) -> Constant:
    """torch's cuBLAS workspace, held in its allocator per handle and stream; the larger where the card is unknown."""
    if compute_capability is None or compute_capability[0] in HOPPER_MAJORS:
        return CUBLAS_WORKSPACE_HOPPER
    return CUBLAS_WORKSPACE
