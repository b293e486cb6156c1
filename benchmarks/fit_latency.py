"""How long `fitlaunch fit` takes and how much memory, as a whole process, beside what does less or the like:
`python benchmarks/fit_latency.py [--runs N] [--fitcheck PATH]`.

--fitcheck: the command of an installed fitcheck-llm, which plans one model on one GPU; it gets the model's config.json
from a cache made for it, so that no network is waited for. The commands are timed in turn, round after round; quote
the medians and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
MODEL = "llama3-8b"
HYDRA = "a Hydra app that composes conf/ and does nothing"
FIT = (sys.executable, "-c", "from launcher.cli import main; main()", "fit", f"model={MODEL}", "device=rtx4090")
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    HYDRA: (sys.executable, str(ROOT / "benchmarks" / "hydra_noop.py"), "hydra.run.dir=."),
    "fitlaunch fit, one job": (*FIT, "method=qlora", "shard=ddp", "gpus=1"),
    "fitlaunch fit, the table": FIT,
}
FITCHECK = "fitcheck-llm, one job"


def cached_config(folder: Path) -> str:
    """A hub cache with the model's config.json and nothing else; returns the model's hub id."""
    conf = yaml.safe_load((ROOT / "conf" / "model" / f"{MODEL}.yaml").read_text())
    name, commit = str(conf["hub_id"]), "0" * 40
    home = folder / "hub" / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(conf["config"] | {"architectures": ["LlamaForCausalLM"]}))
    return name


def measure(command: tuple[str, ...], env: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and peak MiB of one run of a whole process. Exit codes 1 and 3 (does not fit) are answers, too."""
    start = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    child = os.posix_spawn(command[0], command, dict(env), file_actions=silent)
    _, status, usage = os.wait4(child, 0)
    elapsed = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1, 3):
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return elapsed, usage.ru_maxrss / 1024


def main() -> None:
    """Measure every command and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--fitcheck", type=Path)
    arguments = parser.parse_args()
    commands = dict(COMMANDS)
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": scratch, "HF_HUB_OFFLINE": "1"}
        if arguments.fitcheck is not None:
            words = (cached_config(Path(scratch)), "--gpu", "4090", "--qlora", "--seq-len", "512")
            commands[FITCHECK] = (str(arguments.fitcheck.absolute()), *words)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for command in commands.values():
            measure(command, env)  # warm the disk cache
        for _ in track(range(arguments.runs), description="timing", console=Console(stderr=True)):
            for name, command in commands.items():
                found[name].append(measure(command, env))
    hydra = statistics.median(seconds for seconds, _ in found[HYDRA])
    table = Table("command", "min s", "median s", "max s", "x Hydra", "peak MiB", box=None)
    for name, values in found.items():
        times = [seconds for seconds, _ in values]
        median, peak = statistics.median(times), statistics.median(mib for _, mib in values)
        figures = (f"{second:.3f}" for second in (min(times), median, max(times)))
        table.add_row(name, *figures, f"{median / hydra:.2f}", f"{peak:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
