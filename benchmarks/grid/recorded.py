"""The traces of the grid, recorded: peaks and what lasts, by the name of the job. Anyone can compare with them in
seconds, and tests hold the closed form to them; `python -m benchmarks.closed_form --record` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.grid.summary import Summary
from launcher.planner.tracing.key import package_versions

TRACES = Path(__file__).parents[1] / "results" / "closed_form_traces.json"


def read_traces() -> dict[str, Summary]:
    """Every recorded trace, without what stood at its peaks."""
    found = json.loads(TRACES.read_text(encoding="utf-8"))["traces"]
    return {name: Summary(standing={}, wall_s=0.0, **figures) for name, figures in found.items()}


def write_traces(traces: Mapping[str, Summary]) -> None:
    """Record traces with the versions that they were made with."""
    figures = {
        name: {"peaks": trace.peaks, "persistent_bytes": trace.persistent_bytes}
        for name, trace in sorted(traces.items())
    }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in figures.items())
    TRACES.write_text(
        f'{{\n "versions": {json.dumps(package_versions())},\n "traces": {{\n{lines}\n }}\n}}\n', encoding="utf-8"
    )
