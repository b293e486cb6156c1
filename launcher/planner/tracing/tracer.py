"""The way in for the planner: the summary of a rank's trace, from the cache or traced now."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.planner.tracing import events
from launcher.planner.tracing.cache import TraceCache, cache_dir
from launcher.planner.tracing.child import Progress, run_child
from launcher.planner.tracing.failure import TraceFailed
from launcher.planner.tracing.key import trace_key
from launcher.planner.tracing.summary import Summary, summarise
from launcher.spec import JobSpec, to_json


class Run(Protocol):
    """Traces a rank of a job.json into a file; raises TraceFailed."""

    def __call__(self, job: Path, out: Path, rank: int, *, environ: Mapping[str, str], progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracer:
    """Summaries of traces. environ: this process's; progress: told what is being done, in words."""

    cache: TraceCache
    environ: Mapping[str, str]
    progress: Progress
    run: Run = run_child

    def summary(self, spec: JobSpec, rank: int) -> Summary:
        """The summary of a rank of a job whose micro batch is chosen. Raises TraceFailed."""
        key = trace_key(spec, rank)
        found = self.cache.load(key)
        if found is None:
            found = self._trace(spec, rank)
            self.cache.store(key, found)
        return found

    def _trace(self, spec: JobSpec, rank: int) -> Summary:
        with tempfile.TemporaryDirectory(prefix="fitlaunch-trace-") as folder:
            job, out = Path(folder) / "job.json", Path(folder) / "rank.trace"
            job.write_text(to_json(spec))
            self.run(job, out, rank, environ=self.environ, progress=self.progress)
            self.progress("replaying the allocator")
            try:
                return summarise(events.read(out))
            except (OSError, events.TraceFormatError) as error:
                raise TraceFailed(f"the tracer left no trace: {error}") from error


def make_tracer(environ: Mapping[str, str], progress: Callable[[str], None]) -> Tracer:
    """A tracer for this user's cache."""
    return Tracer(cache=TraceCache(cache_dir(environ)), environ=environ, progress=progress)
