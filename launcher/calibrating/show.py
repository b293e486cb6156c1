"""A calibration for people: what was measured, beside what would be planned without it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher.planner.calibration import Amount, Calibration
from launcher.planner.constants import Key, listed_constants
from launcher.report.console import columns, heading, indented, show
from launcher.report.outcome import shown_path
from launcher.spec import DeviceSpec
from launcher.units import format_bytes

NAMES = {
    Key.CUDA_CONTEXT: "CUDA context",
    Key.CUBLAS_WORKSPACE: "cuBLAS workspace",
    Key.NCCL_BASE: "NCCL without communicators",
    Key.NCCL_COMMUNICATORS: "NCCL, each communicator",
    Key.CPU_PROCESS: "process of a CPU rank",
    Key.CPU_SLACK: "resident over allocated",
}


def show_calibration(calibration: Calibration, device: DeviceSpec, path: Path, console: Console) -> None:
    """Each amount, with the table's in its place, and where it is kept."""
    table = columns("llrr", ("", "", "measured", "in the table"))
    for amount in calibration.amounts:
        listed = listed_constants().find(amount.key, device, shard=amount.shard)
        shipped = "-" if listed is None else _size(amount.key, listed.amount)
        table.add_row(NAMES[amount.key], _where(amount), _size(amount.key, amount.amount), shipped)
    show(console, heading("Measured", calibration.source), indented(table))
    kept = f"kept in {shown_path(path, Path.cwd())}; plans for {calibration.card} take it before the table"
    show(console, Text(kept))


def _where(amount: Amount) -> str:
    if amount.num_ranks is not None:
        return f"{amount.num_ranks} ranks"
    return "" if amount.shard is None else amount.shard.value


def _size(key: Key, amount: int) -> str:
    return f"{amount} %" if key is Key.CPU_SLACK else format_bytes(amount)
