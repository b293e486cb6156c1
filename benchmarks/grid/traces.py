"""Many traces from one process: torch and its libraries are imported once, and each trace runs in a fork."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.grid.summary import Summary, summarise
from jobs.tracing.session import record, set_environment
from launcher.spec import JobSpec

TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A trace that gave none: its last words."""

    reason: str


def import_libraries() -> None:
    """All that a trace imports, before any thread is started."""
    os.environ.update(DS_ACCELERATOR="cuda", HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", CUDA_VISIBLE_DEVICES="")
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import deepspeed.runtime.engine
    import deepspeed.runtime.zero.stage3
    import deepspeed.runtime.zero.stage_1_and_2  # noqa: F401
    import peft  # noqa: F401
    import transformers.trainer

    import jobs.tracing.job  # noqa: F401

    for name in ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "phi3"):
        getattr(transformers.models, name)


def trace(spec: JobSpec, rank: int, out: Path) -> Summary | Failed:
    """The summary of one rank's trace, recorded in a fork; kept in `out` and read from there the next time."""
    if out.exists():
        return Summary(**json.loads(out.read_text()))
    child = os.fork()
    if child == 0:
        _in_child(spec, rank, out)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(TIMEOUT_S)
    os.waitpid(child, 0)
    signal.alarm(0)
    if out.exists():
        return Summary(**json.loads(out.read_text()))
    log = out.with_suffix(".log")
    lines = log.read_text().strip().splitlines() if log.exists() else ["no output"]
    return Failed(reason=lines[-1][:200] if lines else "no output")


def _in_child(spec: JobSpec, rank: int, out: Path) -> None:
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        set_environment(spec, rank)
        found = summarise(record(spec, rank))
        temporary = out.with_suffix(".part")
        temporary.write_text(json.dumps(asdict(found)))
        temporary.replace(out)
    except BaseException:  # noqa: BLE001 - the fork ends here either way
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
