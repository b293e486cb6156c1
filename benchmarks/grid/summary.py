"""What a trace says in a few numbers: peaks by phase, what stood at each, and what stays from step to step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from launcher.planner.tracing.events import Kind, Trace
from launcher.planner.types import Phase

STEADY = (Phase.FORWARD.value, Phase.LOSS.value, Phase.BACKWARD.value, Phase.OPTIMIZER.value)
SHOWN = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Peaks of the last traced step by phase (and of loading, wrapping and the first step), and at each peak the
    bytes by category and operation; persistent_bytes stand at the beginning of the last step."""

    peaks: dict[str, int]
    standing: dict[str, dict[str, int]]
    persistent_bytes: int
    wall_s: float

    @property
    def peak_bytes(self) -> int:
        """Of the steady step."""
        return max(self.peaks.get(phase, 0) for phase in STEADY)


def summarise(trace: Trace) -> Summary:
    """One pass over the events, and one more to see what stood at the peaks."""
    highest: dict[str, tuple[int, int]] = {}
    live: dict[int, int] = {}
    now, phase, persistent = 0, "", 0
    for number, event in enumerate(trace.events):
        reached = now
        if event.kind is Kind.MARK:
            mark = trace.marks[event.label]
            if mark.step == trace.num_steps and mark.phase == Phase.FORWARD and not persistent:
                persistent = now
            phase = _name(mark.phase, mark.step, trace.num_steps)
        elif event.kind is Kind.ALLOCATE:
            live[event.block] = event.size_bytes
            now += event.size_bytes
            reached = now
        elif event.kind is Kind.FREE:
            now -= live.pop(event.block)
        elif event.kind is Kind.WORKSPACE:
            reached = now + event.size_bytes
        if phase and reached > highest.get(phase, (-1, 0))[0]:
            highest[phase] = (reached, number)
    at = {number: name for name, (_, number) in highest.items()}
    return Summary(
        peaks={name: peak for name, (peak, _) in highest.items()},
        standing=_standing(trace, at),
        persistent_bytes=persistent,
        wall_s=trace.wall_s,
    )


def _name(phase: str, step: int, num_steps: int) -> str:
    if step == 0 or phase not in STEADY:
        return phase
    return phase if step == num_steps else Phase.FIRST_STEP.value


def _standing(trace: Trace, at: dict[int, str]) -> dict[str, dict[str, int]]:
    live: dict[int, tuple[int, int]] = {}
    found: dict[str, dict[str, int]] = {}
    for number, event in enumerate(trace.events):
        if event.kind is Kind.ALLOCATE:
            live[event.block] = (event.size_bytes, event.label)
        elif event.kind is Kind.FREE:
            live.pop(event.block)
        if number in at:
            sums: Counter[str] = Counter()
            counts: Counter[str] = Counter()
            scratch = [(event.size_bytes, event.label)] if event.kind is Kind.WORKSPACE else []
            for size, label in (*live.values(), *scratch):
                name = f"{trace.labels[label].category}: {trace.labels[label].operation} {size:,}"
                sums[name] += size
                counts[name] += 1
            found[at[number]] = {f"{counts[name]} x {name}": size for name, size in sums.most_common(SHOWN)}
    return found
