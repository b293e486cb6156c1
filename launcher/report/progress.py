"""The progress of a run as it goes on: two lines redrawn on a terminal, one line now and then in a pipe."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.text import Text

from launcher.report.bar import share_cells
from launcher.report.console import draws_blocks, show
from launcher.report.redrawn import Redrawn
from launcher.runs.outcome import Metrics
from launcher.runs.records import EvalMetrics, Event, TrainMetrics
from launcher.units import format_duration

BAR_WIDTH = 30
# In a pipe a line for every step would bury a log; evaluations, the first and the last step are always told.
PIPE_INTERVAL_S = 10.0
# Events that tell of something done, not of something begun. Training has its own bar and times.
MOMENTS = frozenset(
    {
        *("first example", "no chat template", "train", "checkpoint", "check result", "pass over checkpoint", "resume"),
        *("progress is no longer shown", "stop asked", "rank failed", "end by force", "end"),
    }
)
# The last screen says how it ended.
UNTOLD = "end"


class ProgressView(Redrawn):
    """An Observer (launcher.runs.outcome) that draws on a console.

    An event begins a stage, which lasts until the next event or, where that comes first, the next step of training;
    those in MOMENTS only end one.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(console)
        self._clock = clock
        self._stage: Event | None = None
        self._first: TrainMetrics | None = None
        self._last: TrainMetrics | None = None
        self._evaluations: list[EvalMetrics] = []
        self._told_at_s = float("-inf")
        self._broken = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._end_stage(self._clock())
        super().__exit__(kind, error, traceback)

    def update(self, *, events: Sequence[Event], metrics: Sequence[Metrics]) -> None:
        """Take in what is new and draw. A console that has gone away ends the drawing, never the run."""
        if self._broken:
            return
        try:
            for item in sorted([*events, *metrics], key=lambda item: item.time_s):
                self._take(item)
            if self._live is not None:
                self._live.update(Group(*self._lines()), refresh=True)
        except OSError:
            self._broken = True

    def _take(self, item: Event | Metrics) -> None:
        if isinstance(item, Event):
            self._end_stage(item.time_s)
            if item.stage in MOMENTS:
                if item.stage != UNTOLD:
                    self._tell(moment_line(item))
            else:
                self._stage = item
        elif isinstance(item, TrainMetrics):
            self._end_stage(item.time_s)
            self._first = self._first or item
            self._last = item
            self._tell_step(item)
        else:
            self._evaluations.append(item)
            self._tell(Text(f"eval loss {item.loss:.4f} at step {item.step}, over {item.num_samples:,} held-out rows"))

    def _end_stage(self, time_s: float) -> None:
        """Leave a line for the stage that is over."""
        if self._stage is None:
            return
        stage, self._stage = self._stage, None
        self._tell(stage_line(stage, time_s - stage.time_s))

    def _tell_step(self, item: TrainMetrics) -> None:
        if self._live is not None:
            return
        due = item.time_s - self._told_at_s >= PIPE_INTERVAL_S
        if due or item.step == item.num_steps:
            self._told_at_s = item.time_s
            self._tell(Text("  ".join((f"step {item.step}/{item.num_steps}", *self._numbers(item), self._times(item)))))

    def _tell(self, line: Text) -> None:
        show(self._console, line)

    def _lines(self) -> list[Text]:
        """What is redrawn: the stage under way, and the training."""
        lines = []
        if self._stage is not None:
            lines.append(stage_line(self._stage, self._clock() - self._stage.time_s, running=True))
        if self._last is not None:
            bar = progress_bar(self._last.step, self._last.num_steps, blocks=draws_blocks(self._console))
            lines.append(
                Text.assemble(bar, f" {self._last.step}/{self._last.num_steps} steps  ", self._times(self._last))
            )
            lines.append(Text("  ".join((*self._numbers(self._last), *self._evaluation_numbers()))))
        return lines

    def _numbers(self, item: TrainMetrics) -> tuple[str, ...]:
        return (
            f"loss {item.loss:.4f}",
            f"{item.samples_per_s:.2f} samples/s",
            f"{item.tokens_per_s:,.0f} tokens/s",
        )

    def _evaluation_numbers(self) -> tuple[str, ...]:
        if not self._evaluations:
            return ()
        return (f"eval loss {' -> '.join(f'{e.loss:.4f}' for e in _ends(self._evaluations))}",)

    def _times(self, item: TrainMetrics) -> str:
        """Elapsed since the first step was reported, and what is left at the mean pace since then."""
        assert self._first is not None
        now = self._clock() if self._live is not None else item.time_s
        elapsed = f"after {format_duration(max(0.0, now - self._first.time_s))}"
        remaining_s = remaining(self._first, item)
        if not remaining_s:
            return elapsed
        left = max(0.0, remaining_s - (now - item.time_s))
        return f"{elapsed}, about {format_duration(left)} left"


def _ends(evaluations: Sequence[EvalMetrics]) -> tuple[EvalMetrics, ...]:
    """The first evaluation and the last."""
    return (evaluations[0],) if len(evaluations) == 1 else (evaluations[0], evaluations[-1])


def remaining(first: TrainMetrics, last: TrainMetrics) -> float | None:
    """Seconds from `last` to the last step at the mean pace between the two; None while there is no pace yet.

    The pace takes in the evaluations and checkpoints between the two steps, as those to come will cost as well.
    """
    if last.step <= first.step:
        return None
    return (last.num_steps - last.step) * (last.time_s - first.time_s) / (last.step - first.step)


def stage_line(stage: Event, elapsed_s: float, *, running: bool = False) -> Text:
    """'load model            3.2 s  SmolLM2'."""
    name = f"{stage.stage:<22}" if not running else f"{stage.stage + ' ...':<22}"
    return Text.assemble(
        (name, "bold" if running else ""), f"{format_duration(max(0.0, elapsed_s)):>12}", (f"  {stage.detail}", "dim")
    )


def moment_line(event: Event) -> Text:
    """'checkpoint                         checkpoint-12'."""
    return Text.assemble(f"{event.stage:<34}", (f"  {event.detail}" if event.detail else "", "dim"))


def progress_bar(step: int, num_steps: int, *, blocks: bool) -> Text:
    """The share of steps done."""
    done = share_cells(step, num_steps, BAR_WIDTH)
    if blocks:
        return Text.assemble(("━" * done, "green"), ("─" * (BAR_WIDTH - done), "dim"))
    return Text(f"[{'#' * done}{'.' * (BAR_WIDTH - done)}]")
