"""MemoryPlan: what every rank will need, term by term and phase by phase. Immutable; made by launcher.planner.plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from launcher.spec import JobSpec


class Phase(StrEnum):
    """The parts of a job that can each hold the peak, in the order they happen.

    FIRST_STEP is the first optimizer step as a whole, and with ZeRO-3, which learns the order of modules in it, the
    second; FORWARD to OPTIMIZER are parts of every later one, which has optimizer states from its beginning on.
    """

    LOAD = "load"
    WRAP = "wrap"
    FIRST_STEP = "first step"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    EVALUATION = "evaluation"
    SAVE = "save"


class TermKind(StrEnum):
    """What a term is, for people: the rows of the plan's table."""

    WEIGHTS = "weights"
    MASTER_WEIGHTS = "master weights"
    ADAPTERS = "adapters"
    GRADIENTS = "gradients"
    OPTIMIZER_STATES = "optimizer states"
    ACTIVATIONS = "activations"
    LOGITS = "logits and loss"
    SHARDING_BUFFERS = "sharding buffers"
    WORKSPACES = "workspaces"
    OUTSIDE = "context and NCCL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One named amount of memory on one rank, alive in `phases`.

    formula shows the numbers put in, so that someone can check it by hand; source is a paper, or package,
    version and file. Terms of kind OUTSIDE are not the framework allocator's (CUDA context, NCCL).
    """

    name: str
    kind: TermKind
    size_bytes: int
    phases: tuple[Phase, ...]
    formula: str
    source: str

    def alive_in(self, phases: tuple[Phase, ...]) -> Term:
        """The same in other phases."""
        if phases is self.phases:
            return self
        return Term(
            name=self.name,
            kind=self.kind,
            size_bytes=self.size_bytes,
            phases=phases,
            formula=self.formula,
            source=self.source,
        )


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """The plan of the ranks that share one shape. What it says is sums over its terms, each added up once."""

    ranks: tuple[int, ...]
    terms: tuple[Term, ...]

    def allocated_bytes_in(self, phase: Phase) -> int:
        """Bytes the framework's allocator has handed out at the phase's peak."""
        return self._allocated_bytes[phase]

    @cached_property
    def _allocated_bytes(self) -> dict[Phase, int]:
        found = dict.fromkeys(Phase, 0)
        for term in self.terms:
            if term.kind is not TermKind.OUTSIDE:
                for phase in term.phases:
                    found[phase] += term.size_bytes
        return found

    @cached_property
    def peak_phase(self) -> Phase:
        """The phase with the highest peak; the earliest of equals, but the first step only where it is alone."""
        return max(Phase, key=lambda phase: (self.allocated_bytes_in(phase), phase is not Phase.FIRST_STEP))

    @property
    def allocated_bytes(self) -> int:
        """Peak bytes of tensors over all phases (torch.cuda.max_memory_allocated)."""
        return self.allocated_bytes_in(self.peak_phase)

    @cached_property
    def outside_bytes(self) -> int:
        """Bytes the process holds beside the allocator (context, NCCL, interpreter on CPU)."""
        return sum(t.size_bytes for t in self.terms if t.kind is TermKind.OUTSIDE)


class Verdict(StrEnum):
    FITS = "fits"
    TOO_CLOSE = "too close to call"
    DOES_NOT_FIT = "does not fit"
    NO_CARD = "no card named"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change that makes the job fit, already planned. overrides are ready for the command line.

    time_ratio: the estimated time for a token of training, beside that of the job as asked for if it did fit.
    """

    overrides: tuple[str, ...]
    process_bytes: int
    time_ratio: float
    changes_training: bool
    note: str


class HostMoment(StrEnum):
    """When host RAM is held: while weights are read, for the whole training, or while something is saved in it."""

    LOADING = "loading"
    TRAINING = "training"
    SAVING = "saving"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTerm:
    """One amount of host RAM on the fullest node (the first), over all its ranks. Files the kernel keeps in memory
    because there is room (the page cache) do not count."""

    name: str
    size_bytes: int
    moments: tuple[HostMoment, ...]
    formula: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskTerm:
    """One kind of file, over all ranks, of each checkpoint or of the result."""

    name: str
    size_bytes: int
    formula: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The answer: what every rank needs, whether it fits, and how sure that is.

    spec: the job planned, its micro batch chosen.
    process_bytes: what the driver (or, on CPU, the kernel) will show for the worst rank; low and high bound it.
    least_capacity_bytes: the smallest device on which the job is expected to survive.
    host_ram_bytes_per_node, checkpoint_bytes, result_bytes: outside the device; the terms say what they are made of.
    capacity_bytes: the device's memory, None where no card was named; smallest_card answers then.
    """

    spec: JobSpec
    instrument: str
    ranks: tuple[RankPlan, ...]
    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int
    process_low_bytes: int
    process_high_bytes: int
    least_capacity_bytes: int
    host_ram_bytes_per_node: int
    checkpoint_bytes: int
    result_bytes: int
    capacity_bytes: int | None
    verdict: Verdict
    smallest_card: str | None
    suggestions: tuple[Suggestion, ...]
    host_terms: tuple[HostTerm, ...] = ()
    checkpoint_terms: tuple[DiskTerm, ...] = ()
    result_terms: tuple[DiskTerm, ...] = ()

    @property
    def worst_rank(self) -> RankPlan:
        """The rank class that needs the most."""
        return max(self.ranks, key=lambda rank: rank.allocated_bytes + rank.outside_bytes)
