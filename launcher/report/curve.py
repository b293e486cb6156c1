"""The loss curve as a picture. matplotlib is imported here and only when a picture is drawn, at the end of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from launcher.runs.outcome import Metrics
from launcher.runs.records import EvalMetrics, TrainMetrics

TRAIN_COLOUR = "#4477aa"  # Tol's bright scheme: told apart by colour-blind readers, and in grey
EVAL_COLOUR = "#ee6677"


def newest_by_step(metrics: Sequence[Metrics]) -> tuple[list[TrainMetrics], list[EvalMetrics]]:
    """One point a step, in order: where a resumed attempt repeated steps, its points replace the older ones."""
    train = {item.step: item for item in metrics if isinstance(item, TrainMetrics)}
    evaluation = {item.step: item for item in metrics if isinstance(item, EvalMetrics)}
    return [train[step] for step in sorted(train)], [evaluation[step] for step in sorted(evaluation)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Centred means over `window` values (an odd number), shorter at the ends, so that no value is invented."""
    half = window // 2
    spans = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans]


def draw_curve(metrics: Sequence[Metrics], path: Path, *, title: str) -> bool:
    """Write loss.png: training and held-out loss over optimizer steps. False, and no file, when there are no points."""
    train, evaluation = newest_by_step(metrics)
    if not train and not evaluation:
        return False

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        steps, losses = [item.step for item in train], [item.loss for item in train]
        window = len(losses) // 30 * 2 + 1
        if window > 1:
            axes.plot(steps, losses, color=TRAIN_COLOUR, alpha=0.3, linewidth=1)
            axes.plot(
                steps,
                smoothed(losses, window),
                color=TRAIN_COLOUR,
                linewidth=2,
                label=f"training, mean of {window} steps",
            )
        else:
            axes.plot(steps, losses, color=TRAIN_COLOUR, linewidth=1.5, marker="o", markersize=3, label="training")
    if evaluation:
        steps, losses = [item.step for item in evaluation], [item.loss for item in evaluation]
        axes.plot(
            steps, losses, color=EVAL_COLOUR, linewidth=1, linestyle="--", marker="D", markersize=6, label="held out"
        )
        for item in {evaluation[0].step: evaluation[0], evaluation[-1].step: evaluation[-1]}.values():
            axes.annotate(
                f"{item.loss:.3f}", (item.step, item.loss), xytext=(0, 9), textcoords="offset points",
                ha="center", color=EVAL_COLOUR, fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (cross entropy per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.04, y=0.12)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path.write_bytes(picture.getvalue())
    return True
