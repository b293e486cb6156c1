"""How every cell of a sweep stands: from its run's folder, and from one question to the scheduler."""

from __future__ import annotations

from launcher.errors import SubmitError
from launcher.operate.queue import SlurmQueue
from launcher.report.sweeps import Standing
from launcher.runs.layout import RunFolder
from launcher.runs.lock import hold_lock
from launcher.runs.markers import read_markers
from launcher.runs.records import Status, TrainMetrics
from launcher.runs.registry import summarise
from launcher.runs.status import Queue
from launcher.runs.sweeps import Sweep, SweepFolder, read_sweep
from launcher.runs.tail import read_metrics
from launcher.scheduler.client import SchedulerSilent
from launcher.spec import ClusterKind
from launcher.sweeps.submit import adopt


def look(folder: SweepFolder) -> tuple[Sweep, tuple[Standing, ...], str]:
    """The sweep, how its cells stand, and what was said instead of an answer where the scheduler gave none.

    Arrays that were sent by a launcher that was killed are looked for first.
    """
    sweep = read_sweep(folder)
    if sweep.cluster is not ClusterKind.SLURM:
        return sweep, standings(folder, sweep, None), ""
    queue = SlurmQueue()
    try:
        with hold_lock(folder.lock, what=f"sweep {sweep.sweep_id}"):
            adopt(folder, sweep)
    except SchedulerSilent as silent:
        return sweep, standings(folder, sweep, None), str(silent)
    except SubmitError:
        pass  # whoever holds the sweep is submitting it now
    return sweep, standings(folder, sweep, queue), queue.silence


def standings(folder: SweepFolder, sweep: Sweep, queue: Queue | None) -> tuple[Standing, ...]:
    """All cells in their order; a cell without a run folder was never started."""
    found = []
    for cell in sweep.cells:
        run = folder.run(cell)
        summary = summarise(run, queue) if not cell.dropped and run.launch.is_file() else None
        loss_before, loss_after = (None, None) if summary is None else _losses(run, summary.status, summary.attempt)
        progress = "" if summary is None or summary.status is not Status.RUNNING else _steps(run)
        found.append(
            Standing(cell=cell, summary=summary, loss_before=loss_before, loss_after=loss_after, progress=progress)
        )
    return tuple(found)


def _losses(run: RunFolder, status: Status, attempt: int) -> tuple[float | None, float | None]:
    done = read_markers(run, attempt).finished if status is Status.FINISHED else None
    return (None, None) if done is None else (done.eval_loss_before, done.eval_loss_after)


def _steps(run: RunFolder) -> str:
    steps = [item for item in read_metrics(run.metrics) if isinstance(item, TrainMetrics)]
    return f"{steps[-1].step}/{steps[-1].num_steps}" if steps else ""
