"""The command: measure, keep, show."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from launcher.calibrating.show import show_calibration
from launcher.host import detect_host
from launcher.planner.calibration import Calibration, calibration_dir
from launcher.runs.records import write_record
from launcher.spec import DeviceSpec, ShardKind


def calibrate(*, cpu: bool, shards: tuple[ShardKind, ...], output: Path | None, console: Console) -> Calibration:
    """Measure this host's GPUs, or its CPU ranks, and keep what was found where plans look for it."""
    began_s = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - began_s:5.1f} s] {text}", style="dim")

    host = detect_host()
    if cpu:
        from launcher.calibrating.cpu import calibrate_cpu  # with it comes Hydra, which a GPU does not need

        found, device = calibrate_cpu(shards or tuple(ShardKind), say), CPU_DEVICE
    else:
        from launcher.calibrating.gpu import calibrate_gpus

        found = calibrate_gpus(host, say)
        assert host.gpu is not None, "it was measured"
        device = host.gpu
    folder = (output or calibration_dir(os.environ)).absolute()
    path = folder / found.file_name
    write_record(path, found)
    show_calibration(found, device, path, console)
    return found


CPU_DEVICE = DeviceSpec(
    name="cpu",
    kind="cpu",
    memory_bytes=None,
    compute_capability=None,
    memory_bandwidth_bytes_per_s=None,
    source="",
)
