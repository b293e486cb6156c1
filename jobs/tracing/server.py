"""Many traces from one set of imports: `python -m jobs.tracing.server --device cuda`, for tests and benchmarks.

The imports of a trace take longer than a small trace itself. They are done once here, and each trace runs in a fork of
this process, which is as good as new. A request is a JSON line on stdin with job, out and rank; the answer is a JSON
line on stdout with the exit code and what the fork wrote to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

MODULES = (
    "jobs.tracing.job",
    "jobs.tracing.selftest",
    "bitsandbytes",
    "deepspeed",
    "peft",
    "torch.distributed.fsdp",
    "torch.testing._internal.distributed.fake_pg",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
    "transformers.models.mixtral.modeling_mixtral",
    "transformers.models.phi3.modeling_phi3",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
)


def main() -> None:
    """Answer requests until stdin ends."""
    parser = argparse.ArgumentParser(prog="jobs.tracing.server", description="Traces, each in a fork.")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    device = parser.parse_args().device
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR=device, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    answers = os.fdopen(os.dup(1), "w")  # what the libraries print must not come between
    os.dup2(2, 1)
    _import()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line), device)) + "\n")
        answers.flush()


def _import() -> None:
    from importlib import import_module

    for name in MODULES:
        import_module(name)


def _answer(request: dict[str, Any], device: str) -> dict[str, Any]:
    """Fork, trace, wait."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _trace(request, device, errors.fileno())
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "errors": errors.read().decode(errors="replace")}


def _trace(request: dict[str, Any], device: str, errors: int) -> None:
    from jobs.trace import Request, leave, trace
    from launcher.spec import read_job

    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    job = Path(request["job"])
    if read_job(job).device.kind != device:
        sys.stderr.write(f"this server traces jobs on {device}: DeepSpeed has been imported for it\n")
        leave(2)
    leave(trace(Request(job=job, out=Path(request["out"]), rank=request["rank"], parent=None)))


if __name__ == "__main__":
    main()
