"""DeepSpeed's ZeRO-2 and ZeRO-3 on fake tensors (deepspeed 0.19.8): the engine is the real one.

- How much memory is free decides where ZeRO-2 flattens the weights (stage_1_and_2.py, available_memory()). It is asked
  of NVML or of the host, and answered here for the planned device.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jobs.tracing.recorder import Recorder
from jobs.tracing.target import Target
from launcher.precision import is_deepspeed
from launcher.render.zero_config import deepspeed_config
from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec


def write_config(spec: JobSpec, run: RunFolder) -> None:
    """deepspeed.json, as the launcher writes it, of the job that is traced."""
    if is_deepspeed(spec.shard.kind):
        run.deepspeed.write_text(json.dumps(deepspeed_config(spec)))


def install(target: Target, recorder: Callable[[], Recorder | None]) -> None:
    """Answer for the planned device."""
    from deepspeed.accelerator import get_accelerator

    def available_memory(_self: Any, _device: int | None = None) -> int:
        found = recorder()
        return target.memory_bytes - (found.main.allocated_bytes if found is not None else 0)

    accelerator = type(get_accelerator())
    assert hasattr(accelerator, "available_memory")
    accelerator.available_memory = available_memory
