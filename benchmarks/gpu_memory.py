"""The planner against a GPU: `python benchmarks/gpu_memory.py`, on a host with one; nothing else is needed.

Every configuration of a matrix (method x sharding over 1, 2 and 8 ranks, and single changes of batch, sequence length,
checkpointing, loss, optimizer and attention) is run by the job's own code on real tensors, each in a process of its
own, as rank 0 beside ranks that are not there (jobs/measured.py). What it allocated, reserved and took of the device
(NVML) is set beside the closed form and, with --trace, beside the trace. The models have random weights, written once
to a folder; nothing is downloaded. NCCL is not measured: a fake process group has none, and the plan is compared
without it.

--device cpu runs the same on tiny models on the CPU, where the resident set stands in for the process: that measures
the harness. Results go to benchmarks/results/gpu_memory-<device>.json, after every configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import yaml
from rich.console import Console
from rich.table import Table

from launcher.assemble import assemble
from launcher.compose import make_spec
from launcher.errors import InputError
from launcher.host import Host, detect_host
from launcher.models import model_shape
from launcher.paths import conf_dir
from launcher.planner.calibration import load_constants
from launcher.planner.estimate import Estimator
from launcher.planner.tracing.failure import TraceFailed
from launcher.planner.tracing.tracer import make_tracer
from launcher.planner.types import TermKind
from launcher.runs.records import RankMeasurement, write_record
from launcher.spec import JobSpec, to_json

ROOT = Path(__file__).parents[1]
METHODS = ("full", "lora", "qlora")
SHARDINGS = (("ddp", 1), *((shard, ranks) for ranks in (2, 8) for shard in ("ddp", "fsdp", "zero2", "zero3")))
# Single changes, made on one rank and on FSDP2 over eight; those for CUDA alone are passed over on a CPU.
CHANGES = {
    "batch4": ("train.micro_batch=4", "train.global_batch={batch}"),
    "accumulate": ("train.global_batch={batch}",),
    "long": ("train.sequence_length={length}",),
    "kept": ("train.activation_checkpointing=none",),
    "eager": ("train.attention=eager",),
    "pure": ("train.precision=bf16_pure",),
    "packed": ("train.packing=true",),
}
CUDA_CHANGES = {
    "fused-loss": ("train.loss=fused_linear",),
    "adamw-8bit": ("train.optimizer=adamw_8bit",),
}
BASES = (("full", "ddp", 1), ("lora", "ddp", 1), ("lora", "fsdp", 8))
MODELS = {"cuda": ("llama3.2-1b", "qwen2.5-0.5b"), "cpu": ("tiny",)}
SEQUENCE_LENGTH = {"cuda": 1024, "cpu": 64}
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "dtype": "bfloat16",
}  # fmt: skip
TIMEOUT_S = 900.0
NOT_MEASURED = ("NCCL", "NVLink SHARP")  # terms of a process group that is not real


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration: its name, its model and what is typed for it."""

    name: str
    model: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What one way of knowing says, in bytes; None where it cannot tell."""

    allocated_bytes: int | None
    reserved_bytes: int | None
    process_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration as measured and as predicted. problem: why something is missing, '' where nothing is."""

    case: Case
    measured: Sizes | None
    by_phase: dict[str, int]
    planned: Sizes | None
    traced: Sizes | None
    wall_s: float
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A whole benchmark, with where it was run."""

    device: str
    driver: str | None
    host: str
    measured_at: str
    versions: dict[str, str]
    rows: tuple[Row, ...]


def cases(device: str) -> Iterator[Case]:
    """The matrix for a kind of device."""
    for model in MODELS[device]:
        for method in METHODS:
            for shard, ranks in SHARDINGS:
                yield _case(device, model, method, shard, ranks, "", ())
        changes = CHANGES | (CUDA_CHANGES if device == "cuda" else {})
        for method, shard, ranks in BASES:
            for name, words in changes.items():
                if not (name == "adamw-8bit" and shard == "fsdp"):  # FSDP2 cannot shard its states
                    yield _case(device, model, method, shard, ranks, name, words)


def _case(device: str, model: str, method: str, shard: str, ranks: int, change: str, words: Sequence[str]) -> Case:
    length = SEQUENCE_LENGTH[device]
    name = "-".join(part for part in (model, method, shard if ranks > 1 else "none", f"x{ranks}", change) if part)
    base = {
        "train.micro_batch": "2", "train.global_batch": str(2 * ranks), "train.sequence_length": str(length),
        "train.activation_checkpointing": "full",
    }  # fmt: skip
    changed = dict(word.format(length=2 * length, batch=4 * ranks).split("=", 1) for word in words)
    options = (f"{key}={value}" for key, value in (base | changed).items())
    return Case(name=name, model=model, words=(f"method={method}", f"shard={shard}", f"gpus={ranks}", *options))


def write_models(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """The models with random weights, made where they are not there yet."""
    found = {}
    for name in names:
        config = (
            TINY if name == "tiny" else yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text())["config"]
        )
        target = folder / name
        if not (target / "rows.json").exists():
            description = folder / f"{name}.json"
            folder.mkdir(parents=True, exist_ok=True)
            description.write_text(json.dumps(config))
            argv = (sys.executable, "-m", "jobs.synthetic", str(target), str(description))
            subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=TIMEOUT_S)
        found[name] = target
    return found


def make_job(case: Case, device: str, model: Path, host: Host) -> JobSpec:
    """The case's job. Raises InputError where it is no valid one here."""
    words = (
        "mode=plan", f"device={'cpu' if device == 'cpu' else 'auto'}", "model=path", f"model.path={model}",
        "data=alpaca", f"data.path={model / 'rows.json'}", "tracker=none", *case.words,
    )  # fmt: skip
    return make_spec(assemble(words, conf_dir()), host)


def measure(spec: JobSpec) -> tuple[RankMeasurement | None, str]:
    """Run one job in a process of its own; the measurement, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="fitlaunch-") as scratch:
        job, output = Path(scratch) / "job.json", Path(scratch) / "measured.json"
        job.write_text(to_json(spec))
        env = os.environ | {
            "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT), "CUDA_MODULE_LOADING": "LAZY",
            "PYTORCH_ALLOC_CONF": "expandable_segments:True", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        argv = (sys.executable, "-m", "jobs.measured", str(job), str(output))
        try:
            done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return None, f"not done after {TIMEOUT_S:.0f} s"
        if not output.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if "Error" in line]
            return None, (errors or lines or [f"ended with {done.returncode}"])[-1].strip()[:300]
        return msgspec.json.decode(output.read_bytes(), type=RankMeasurement), ""


def planned(spec: JobSpec) -> Sizes:
    """The closed form for rank 0, without what a fake process group does not have."""
    found = Estimator(model_shape(spec.model.config), constants=load_constants(os.environ)).estimate(spec)
    rank = next(rank for rank in found.ranks if 0 in rank.ranks)
    absent = sum(t.size_bytes for t in rank.terms if t.kind is TermKind.OUTSIDE and t.name.startswith(NOT_MEASURED))
    return Sizes(
        allocated_bytes=rank.allocated_bytes,
        reserved_bytes=found.need.reserved_bytes if spec.device.kind == "cuda" else None,
        process_bytes=found.need.process_bytes - absent,
    )


def traced(spec: JobSpec) -> tuple[Sizes | None, str]:
    """The trace of rank 0; or why there is none."""
    try:
        found = make_tracer(os.environ, lambda _text: None).summary(spec, 0)
    except TraceFailed as error:
        return None, str(error).splitlines()[-1][:300]
    reserved = found.reserved_bytes if spec.device.kind == "cuda" else None
    return Sizes(allocated_bytes=found.allocated_bytes, reserved_bytes=reserved, process_bytes=None), ""


def run_case(case: Case, device: str, model: Path, host: Host, *, trace: bool) -> Row:
    """Measure and predict one configuration."""
    began_s = time.monotonic()
    try:
        spec = make_job(case, device, model, host)
    except InputError as error:
        return Row(
            case=case, measured=None, by_phase={}, planned=None, traced=None, wall_s=0.0, problem=f"no job: {error}"
        )
    found, problem = measure(spec)
    trace_sizes, trace_problem = traced(spec) if trace else (None, "")
    measured = None
    if found is not None:
        measured = Sizes(
            allocated_bytes=found.allocated_bytes,
            reserved_bytes=found.reserved_bytes,
            process_bytes=found.process_bytes,
        )
    return Row(
        case=case,
        measured=measured,
        by_phase={} if found is None else found.by_phase,
        planned=planned(spec),
        traced=trace_sizes,
        wall_s=round(time.monotonic() - began_s, 1),
        problem="; ".join(part for part in (problem, f"trace: {trace_problem}" if trace_problem else "") if part),
    )


MEASURES = ("allocated", "reserved", "process")


def percent_off(predicted: Sizes | None, measured: Sizes | None, measure_name: str) -> float | None:
    """Signed error in per cent of what was measured; None where either is unknown."""
    if predicted is None or measured is None:
        return None
    said, was = getattr(predicted, f"{measure_name}_bytes"), getattr(measured, f"{measure_name}_bytes")
    return None if said is None or not was else 100 * (said - was) / was


def show(results: Results, console: Console) -> None:
    """A line for each configuration, and the errors together."""
    columns = [(way, name) for way in ("planned", "traced") for name in MEASURES]
    known = {
        column: [
            off
            for row in results.rows
            if (off := percent_off(getattr(row, column[0]), row.measured, column[1])) is not None
        ]
        for column in columns
    }
    columns = [column for column in columns if known[column]]
    table = Table("configuration", "allocated MiB", *(f"{way} {name}" for way, name in columns), "", box=None)
    for row in results.rows:
        allocated = "-" if row.measured is None else f"{(row.measured.allocated_bytes or 0) / 2**20:,.1f}"
        offs = (percent_off(getattr(row, way), row.measured, name) for way, name in columns)
        table.add_row(row.case.name, allocated, *("-" if off is None else f"{off:+.1f} %" for off in offs), row.problem)
    console.print(table)
    summary = Table("", "count", "median", "mean, unsigned", "95 % within", "worst", box=None)
    for way, name in columns:
        offs = sorted(known[(way, name)], key=abs)
        middle = sorted(offs)[len(offs) // 2]
        mean = sum(map(abs, offs)) / len(offs)
        within = abs(offs[min(len(offs) - 1, int(0.95 * len(offs)))])
        cells = (f"{middle:+.1f} %", f"{mean:.1f} %", f"{within:.1f} %", f"{offs[-1]:+.1f} %")
        summary.add_row(f"{way} {name}", str(len(offs)), *cells)
    console.print(summary)


def device_of(kind: str, host: Host) -> tuple[str, str | None]:
    """What the results are called by, and the driver."""
    if kind == "cpu":
        return "cpu", None
    if host.gpu is None:
        reason = f" ({host.gpu_problem})" if host.gpu_problem else ""
        raise SystemExit(f"this host has no GPU{reason}: run it where there is one, or with --device cpu")
    return host.gpu.name, host.gpu_driver


def versions() -> dict[str, str]:
    """What was installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "liger-kernel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the matrix, or the part of it that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cases", default="*", help="a pattern of names, as *-lora-*; --list shows them")
    parser.add_argument("--list", action="store_true", help="show the configurations and stop")
    parser.add_argument("--trace", action="store_true", help="trace each configuration, too")
    parser.add_argument("--models", type=Path, help="where the models are kept; a folder of the cache otherwise")
    parser.add_argument("--output", type=Path, help="where the results go")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    chosen = [case for case in cases(options.device) if fnmatch.fnmatch(case.name, options.cases)]
    if options.list:
        sys.stdout.write("".join(f"{case.name}  {' '.join(case.words)}\n" for case in chosen))
        return 0
    host = detect_host()
    device, driver = device_of(options.device, host)
    models = write_models(sorted({case.model for case in chosen}), options.models or default_models_dir())
    output = options.output or ROOT / "benchmarks" / "results" / f"gpu_memory-{device}.json"
    rows: list[Row] = []
    results = Results(
        device=device,
        driver=driver,
        host=host.hostname,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        rows=(),
    )
    for number, case in enumerate(chosen, start=1):
        console.print(f"{number} of {len(chosen)}: {case.name}", style="dim")
        rows.append(run_case(case, options.device, models[case.model], host, trace=options.trace))
        results = dataclasses.replace(results, rows=tuple(rows))
        write_record(output, results)
    show(results, Console())
    return 0 if all(row.measured is not None or row.problem.startswith("no job") for row in rows) else 1


def default_models_dir() -> Path:
    """Beside what else is kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fitlaunch" / "synthetic"


if __name__ == "__main__":
    sys.exit(main())
