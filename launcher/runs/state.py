"""state.json: what the launcher says of a run, rewritten whole each time."""

from __future__ import annotations

import socket
import time

import msgspec

from launcher.runs.layout import RunFolder
from launcher.runs.processes import this_process
from launcher.runs.records import RunState, Status, read_record, write_record


def read_state(run: RunFolder) -> RunState | None:
    """The state; None where there is none, or none that can be read."""
    try:
        return read_record(run.state, RunState)
    except msgspec.DecodeError:
        return None


def write_state(
    run: RunFolder, status: Status, *, attempt: int, exit_code: int | None = None, reason: str = ""
) -> None:
    """Write how the run stands now, under this process as its launcher; the time of its creation stays."""
    before = read_state(run)
    now_s = time.time()
    me = this_process()
    state = RunState(
        run_id=run.root.name,
        status=status,
        attempt=attempt,
        created_at_s=before.created_at_s if before else now_s,
        updated_at_s=now_s,
        launcher_pid=me.pid,
        launcher_start=me.start_ticks,
        host=socket.gethostname(),
        exit_code=exit_code,
        reason=reason,
    )
    write_record(run.state, state)
