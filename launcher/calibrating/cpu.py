"""Measuring CPU ranks: the real job, with a tiny model and with a small one, once for each sharding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.calibrating.amounts import cpu_amounts
from launcher.calibrating.gpu import make_calibration
from launcher.errors import JobFailed
from launcher.main import launch
from launcher.planner.calibration import CPU, Calibration
from launcher.readings import Place
from launcher.runs.layout import RunFolder
from launcher.runs.records import RankMeasurement, Started, read_record
from launcher.runs.registry import list_runs
from launcher.spec import ShardKind

COMMAND = "fitlaunch calibrate --cpu"
NUM_RANKS = 2
WRITE_TIMEOUT_S = 300.0
# 32 million parameters, in pieces that the C library keeps when they are freed, as it does those of larger models.
MODEL = {
    "model_type": "llama", "tie_word_embeddings": False, "max_position_embeddings": 2048, "vocab_size": 8192,
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
# The same job with little to hold and with much, about 0.3 and 1 GiB of tensors a rank.
JOBS = {
    "light": ("train.sequence_length=256", "train.activation_checkpointing=full"),
    "heavy": ("train.sequence_length=512", "train.activation_checkpointing=none"),
}
Measurements = tuple[RankMeasurement, ...]
Say = Callable[[str], None]


def calibrate_cpu(shards: Sequence[ShardKind], say: Say) -> Calibration:
    """Run two jobs for each sharding on two ranks of this host. Raises JobFailed where one does not finish."""
    found: dict[str, dict[ShardKind, Measurements]] = {name: {} for name in JOBS}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fitlaunch-") as scratch:
        model = _write_model(Path(scratch) / "model", MODEL)
        for shard in shards:
            for name, overrides in JOBS.items():
                say(f"running a {name} job over {shard} on {NUM_RANKS} CPU ranks")
                found[name][shard], versions = _run_job(model, shard, name, overrides)
    place = Place(host=socket.gethostname(), gpu="", driver="", versions=versions)
    return make_calibration(CPU, place, cpu_amounts(found["light"], found["heavy"]), found, COMMAND)


def _write_model(folder: Path, config: dict[str, Any]) -> Path:
    description = folder.with_suffix(".json")
    description.write_text(json.dumps(config))
    argv = (sys.executable, "-m", "jobs.synthetic", str(folder), str(description))
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=WRITE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise JobFailed(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return folder


def _run_job(model: Path, shard: ShardKind, name: str, more: Sequence[str]) -> tuple[Measurements, dict[str, str]]:
    """Three steps of a job, and what each rank measured; with the versions that ran."""
    runs_dir = model.parent / f"{shard}-{name}"
    overrides = (
        "model=path", f"model.path={model}", "data=alpaca", f"data.path={model / 'rows.json'}", "method=lora",
        f"shard={shard}", "device=cpu", f"gpus={NUM_RANKS}", "tracker=none", f"runs_dir={runs_dir}",
        "data.eval_fraction=0.02", "train.global_batch=8", "train.micro_batch=4", "train.packing=true",
        "train.max_steps=3", "fit=warn", *more,
    )  # fmt: skip
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        code = launch(overrides, Console(file=nowhere))
    (summary,) = list_runs(runs_dir)
    run = RunFolder(summary.run_dir)
    ranks = tuple(read_record(run.measured(1, rank), RankMeasurement) for rank in range(NUM_RANKS))
    started = read_record(run.started(1), Started)
    measured = tuple(rank for rank in ranks if rank is not None)
    if code != 0 or started is None or len(measured) < NUM_RANKS:
        raise JobFailed(f"the {name} job over {shard} did not finish: {summary.reason or 'nobody said why'}")
    return measured, started.versions
