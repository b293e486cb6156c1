"""Many traces for tests and benchmarks: a process that has imported everything, and forks for each."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from launcher.planner.tracing.child import THREADS, TIMEOUT_S, Progress, end, reason
from launcher.planner.tracing.failure import TraceFailed


class TraceServer:
    """Traces jobs for one kind of device, one after the other. Its run() is a Tracer's."""

    def __init__(self, device: str, *, environ: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._process = subprocess.Popen(
            (sys.executable, "-m", "jobs.tracing.server", "--device", device),
            env={**(os.environ if environ is None else environ), **THREADS, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> TraceServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self, job: Path, out: Path, rank: int, *, environ: Mapping[str, str] | None = None, progress: Progress = print
    ) -> None:
        """Trace a rank of a job.json into a file. Raises TraceFailed."""
        del environ, progress
        assert self._process.stdin is not None
        request = json.dumps({"job": str(job), "out": str(out), "rank": rank})
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise TraceFailed("the trace server has ended") from None
        answer = json.loads(self._answer())
        if answer["code"]:
            raise TraceFailed(reason(answer["errors"], answer["code"]))

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout_s):
                raise TraceFailed(f"the trace server did not answer within {self._timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise TraceFailed("the trace server has ended")
        return line

    def close(self) -> None:
        """End the server and whatever it is at."""
        end(self._process)
        if self._process.stdin is not None:
            self._process.stdin.close()
