"""Trackers, on rank 0 only. A key comes from the environment alone; nothing of the command line is handed on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from launcher.spec import JobSpec, TrackerKind


class Tracker(Protocol):
    """Somewhere to send numbers."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class NoTracker:
    """Keeps nothing; metrics.jsonl has it all anyway."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, values: dict[str, float], step: int) -> None:
        """Write each value as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """wandb: online where the environment has a key, offline otherwise. A resumed run continues under the same id."""

    def __init__(self, folder: Path, *, project: str | None, run_id: str, config: dict[str, Any]) -> None:
        import wandb

        offline = not os.environ.get("WANDB_API_KEY") and not os.environ.get("WANDB_MODE")
        self._run = wandb.init(
            project=project,
            id=run_id,
            name=run_id,
            dir=str(folder),
            config=config,
            mode="offline" if offline else None,
            resume="allow",
            settings=wandb.Settings(x_disable_meta=True),  # wandb's metadata holds the whole command line
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Send the values of one step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def open_tracker(spec: JobSpec, folder: Path, *, run_id: str, is_first_rank: bool) -> Tracker:
    """The tracker the job asks for; none on any rank but the first."""
    if not is_first_rank or spec.tracker.kind is TrackerKind.NONE:
        return NoTracker()
    if spec.tracker.kind is TrackerKind.TENSORBOARD:
        return TensorBoard(folder / "tensorboard")
    config = {"model": spec.model.name, "method": spec.method.kind.value, "shard": spec.shard.kind.value}
    return WeightsAndBiases(folder, project=spec.tracker.project, run_id=run_id, config=config)
