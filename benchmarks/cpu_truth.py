"""The trace against the real CPU allocator: `python -m benchmarks.cpu_truth` runs each cell, traces it and compares.

A real run (jobs.train under torchrun, gloo) is recorded from loading to saving by c10's own count of what the CPU
allocator has handed out. Both sides cut phases at the same lines of code (jobs/phases.py). Memory that gloo's threads
still hold of collectives that are over is waited for, and named apart. The closed form is there for information.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jobs.cpu_memory import StretchMemory
from jobs.job import RECORD_EVERYTHING
from jobs.versions import installed_versions
from launcher.models import model_shape
from launcher.planner.estimate import Estimator
from launcher.planner.ranks import plan_of_rank
from launcher.planner.tracing import events
from launcher.planner.tracing.server import TraceServer
from launcher.planner.tracing.summary import phase_of, summarise
from launcher.planner.types import Phase
from launcher.spec import JobSpec, MethodKind, Precision, ShardKind, to_json
from tests.ranks import log_text, make_spec, start_ranks, wait_for, write_run
from tests.tiny import make_tokenizer

RESULT = Path(__file__).parent / "results" / "cpu_truth.txt"
BOUND = 0.005  # of the peak
TIMEOUT_S = 600.0
SEQUENCE_LENGTH = 256
NUM_ROWS = 28  # enough for three steps of two ranks, and a batch held out for each
NUM_STEPS = 3  # the first, the one in which DDP rebuilds its buckets, and one like all that follow
PHASES = tuple(Phase)
PRECISIONS = (Precision.FP32, Precision.BF16_MIXED)
# Loading in one thread, as a trace does: the profiler does not follow transformers' threads.
RECORDED = {RECORD_EVERYTHING: "1", "HF_DEACTIVATE_ASYNC_LOAD": "1"}

Peaks = Mapping[Phase, int]
"""The most bytes that are allocated at once in each phase; the first step is a phase of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A row of the table."""

    method: MethodKind
    shard: ShardKind
    precision: Precision
    world_size: int = 2

    @property
    def name(self) -> str:
        return f"{self.method}-{self.shard}-{self.precision}-{self.world_size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One rank of one cell as it ran, as it was traced, and as the closed form has it.

    late_bytes: the most that gloo's threads still held of a collective that was over, and in which phase.
    """

    cell: Cell
    rank: int
    real: Peaks
    traced: Peaks
    planned: Peaks
    late_bytes: int
    late_phase: Phase

    @property
    def error(self) -> float:
        """Of the traced peak over all phases, signed, as a share of the real one."""
        return highest(self.traced) / highest(self.real) - 1

    @property
    def planned_error(self) -> float:
        """The same of the closed form."""
        return highest(self.planned) / highest(self.real) - 1

    def error_in(self, phase: Phase) -> float:
        """Of the traced peak of one phase."""
        return self.traced[phase] / self.real[phase] - 1


def highest(peaks: Peaks) -> int:
    """The peak over all phases that are traced."""
    return max(peaks[phase] for phase in PHASES)


def make_inputs(root: Path) -> None:
    """A model whose peaks are tens of MiB, and rows that all have to be cut to the sequence length: none is padded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    long = "The cat called red is red. " * SEQUENCE_LENGTH
    rows = [{"instruction": f"Go on, {number}.", "input": "", "output": long} for number in range(NUM_ROWS)]
    (root / "data.json").write_bytes(msgspec.json.encode(rows))


def spec_of(root: Path, cell: Cell) -> JobSpec:
    """The cell's job: two micro batches of two sequences a step."""
    return make_spec(
        root / "model",
        root / "data.json",
        method=cell.method,
        shard=cell.shard,
        precision=cell.precision,
        world_size=cell.world_size,
        max_steps=NUM_STEPS,
        global_batch=4 * cell.world_size,
        micro_batch=2,
        sequence_length=SEQUENCE_LENGTH,
    )


def compare(root: Path, cell: Cell, server: TraceServer, ranks: Sequence[int] = (0,)) -> list[Compared]:
    """Run a cell and trace it. root holds the inputs; FITLAUNCH_CACHE and what RECORDED says must be set."""
    spec = spec_of(root, cell)
    folder = root / cell.name
    recorded = measure(spec, folder)
    return [compare_rank(spec, cell, rank, recorded[rank], trace(spec, rank, folder, server)) for rank in ranks]


def compare_rank(
    spec: JobSpec, cell: Cell, rank: int, recorded: Sequence[StretchMemory], traced: events.Trace
) -> Compared:
    """One rank's recording beside its trace and its plan."""
    latest = max(recorded, key=lambda stretch: stretch.late_bytes)
    return Compared(
        cell=cell,
        rank=rank,
        real=recorded_peaks(recorded),
        traced={Phase(peak.phase): peak.allocated_bytes for peak in summarise(traced).phases},
        planned=planned_peaks(spec, rank),
        late_bytes=latest.late_bytes,
        late_phase=latest.phase,
    )


def measure(spec: JobSpec, folder: Path) -> list[list[StretchMemory]]:
    """Run the job; what each rank recorded of itself."""
    run = write_run(folder, spec)
    if wait_for(start_ranks(run, spec), TIMEOUT_S) != 0:
        raise RuntimeError(log_text(run))
    files = [run.attempt(1) / f"memory-rank-{rank}.json" for rank in range(spec.world_size)]
    return [msgspec.json.decode(file.read_bytes(), type=list[StretchMemory]) for file in files]


def trace(spec: JobSpec, rank: int, folder: Path, server: TraceServer) -> events.Trace:
    """Trace one rank of the same job."""
    job, out = folder / "job.json", folder / f"trace-{rank}.msgpack"
    job.write_text(to_json(spec))
    server.run(job, out, rank)
    return events.read(out)


def recorded_peaks(stretches: Iterable[StretchMemory]) -> Peaks:
    """The highest of each phase's stretches."""
    found: dict[Phase, int] = {}
    for stretch in stretches:
        phase = phase_of(events.Mark(phase=stretch.phase, step=stretch.step))
        found[phase] = max(found.get(phase, 0), stretch.peak_bytes)
    return found


def planned_peaks(spec: JobSpec, rank: int) -> Peaks:
    """The closed form's."""
    plan = plan_of_rank(Estimator(model_shape(spec.model.config)).best(spec).work, rank)
    return {phase: plan.allocated_bytes_in(phase) for phase in Phase}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, trace, compare, print."""
    options = _options(arguments)
    cells = [cell for cell in all_cells(options.ranks) if any(part in cell.name for part in options.only)]
    compared: list[Compared] = []
    with tempfile.TemporaryDirectory(prefix="fitlaunch-cpu-truth-") as folder, TraceServer("cpu") as server:
        root = Path(folder)
        os.environ.update(FITLAUNCH_CACHE=str(root / "cache"), **RECORDED)
        make_inputs(root)
        for cell in track(cells, "running", console=Console(stderr=True), transient=True):
            compared += kept(options.keep, root, cell, server)
    show(Console(width=170), compared)
    if options.record:
        with RESULT.open("w") as file:
            console = Console(file=file, width=170)
            console.print(provenance(), highlight=False)
            show(console, compared)


def kept(folder: Path | None, root: Path, cell: Cell, server: TraceServer) -> list[Compared]:
    """A cell's comparison, from an earlier call where it was kept."""
    file = None if folder is None else folder / f"{cell.name}.json"
    if file is not None and file.exists():
        return msgspec.json.decode(file.read_bytes(), type=list[Compared])
    compared = compare(root, cell, server, ranks=range(cell.world_size))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.encode(compared))
    return compared


def all_cells(world_size: int) -> list[Cell]:
    """Every method under every sharding in two precisions; on one rank, without sharding."""
    shards = tuple(ShardKind) if world_size > 1 else (ShardKind.DDP,)
    return [
        Cell(method=method, shard=shard, precision=precision, world_size=world_size)
        for precision, method, shard in itertools.product(PRECISIONS, MethodKind, shards)
    ]


def provenance() -> str:
    """By which command, where and with what the figures were made."""
    packages = ", ".join(f"{name} {version}" for name, version in sorted(installed_versions().items()))
    command = " ".join(("python -m benchmarks.cpu_truth", *sys.argv[1:]))
    return f"{command}\n{os.cpu_count()} cores, {platform.platform()}\n{packages}\n"


def show(console: Console, compared: Sequence[Compared]) -> None:
    """The table: errors of the trace by phase and at the peak, then what gloo held late, then the closed form."""
    table = Table(box=None, title="traced / allocated by real ranks - 1", title_justify="left")
    table.add_column("cell")
    for name in ("rank", "peak MiB", "peak", *(phase.value for phase in PHASES), "late MiB", "closed form"):
        table.add_column(name, justify="right")
    for one in compared:
        by_phase = (_percent(one.error_in(phase)) for phase in PHASES)
        late = f"{one.late_bytes / 2**20:.1f} {one.late_phase.value}" if one.late_bytes else "-"
        table.add_row(
            one.cell.name,
            str(one.rank),
            f"{highest(one.real) / 2**20:.1f}",
            f"{100 * one.error:+.3f} %",
            *by_phase,
            late,
            f"{100 * one.planned_error:+.1f} %",
        )
    console.print(table, highlight=False)
    inside = sum(abs(one.error) <= BOUND for one in compared)
    console.print(f"peak within {BOUND:.1%}: {inside} of {len(compared)}", highlight=False)


def _percent(share: float) -> str:
    return f"{100 * share:+.2f} %"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.cpu_truth", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="cells whose name contains one of these: lora-zero3")
    parser.add_argument("--ranks", type=int, default=2, help="how many ranks run each cell")
    parser.add_argument("--keep", type=Path, help="a folder for the cells that are done, which are not run again")
    parser.add_argument("--record", action="store_true", help=f"write the table to {RESULT.name} as well")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
