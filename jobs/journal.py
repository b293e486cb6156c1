"""What a rank writes about itself into the run folder: stages and metrics by rank 0, a failure by whoever failed."""

from __future__ import annotations

import socket
import time
import traceback
from dataclasses import dataclass
from typing import Any

from jobs.start import Start
from launcher.runs.layout import RunFolder
from launcher.runs.records import Event, Failed, append_record, write_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Records of one start of one rank."""

    run: RunFolder
    start: Start

    def stage(self, stage: str, detail: str = "") -> None:
        """Append a stage to events.jsonl; rank 0 only."""
        if self.start.is_first_rank:
            event = Event(
                time_s=time.time(),
                source="job",
                attempt=self.start.attempt,
                stage=stage,
                detail=detail,
                node=self.start.node,
                host=socket.gethostname(),
            )
            append_record(self.run.events, event)

    def metrics(self, record: Any) -> None:
        """Append a line to metrics.jsonl; rank 0 only."""
        if self.start.is_first_rank:
            append_record(self.run.metrics, record)

    def failed(self, error: BaseException, *, phase: str = "", step: int | None = None) -> None:
        """Write what this rank died of, and where it was, as far as it had got."""
        record = Failed(
            attempt=self.start.attempt,
            time_s=time.time(),
            rank=self.start.rank,
            host=socket.gethostname(),
            error_type=type(error).__name__,
            message=str(error),
            traceback="".join(traceback.format_exception(error)),
            phase=phase,
            step=step,
        )
        write_record(self.run.failed(self.start.attempt, self.start.rank), record)
