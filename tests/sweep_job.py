"""What cells run in the tests of sweeps, in the place of torchrun: a job that trains nothing and needs no torch.

    python -m tests.sweep_job RUN

Its loss follows from the learning rate: the best is 1e-3. SWEEP_JOB in its environment has words: `seconds=S` is how
long it takes, `fail=LR` the learning rate that fails in the first attempt.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

from launcher.runs.layout import RunFolder
from launcher.runs.records import EvalMetrics, Failed, Stopped, append_record, write_record
from launcher.spec import read_job
from tests.markers import finished, started, stepped

STEPS = 4


def main() -> int:
    run, attempt = RunFolder(Path(sys.argv[1])), int(os.environ["FITLAUNCH_ATTEMPT"])
    words = dict(word.split("=") for word in os.environ.get("SWEEP_JOB", "").split())
    rate = read_job(run.job).train.learning_rate
    log = Path("logs") / "stub_rank0.log"  # where DeepSpeed's launcher would have it
    log.parent.mkdir(exist_ok=True)
    log.write_text(f"{time.time():.3f} begins\n")
    write_record(run.started(attempt), started(attempt, world_size=1))
    seconds = float(words.get("seconds", "0")) if attempt == 1 else 0.0
    for step in range(1, STEPS + 1):
        time.sleep(seconds / STEPS)
        if run.stop_file(attempt).exists():
            cause = run.stop_file(attempt).read_text().strip()
            record = Stopped(attempt=attempt, time_s=time.time(), step=step, cause=cause, checkpoint=None)
            write_record(run.stopped(attempt), record)
            return 0
        if step == 2 and attempt == 1 and rate == float(words.get("fail", "0")):
            write_record(run.failed(attempt, 0), failed(attempt))
            return 1
        append_record(run.metrics, stepped(attempt, step, STEPS, loss=loss_of(rate) / step))
    loss = loss_of(rate)
    append_record(run.metrics, EvalMetrics(time_s=time.time(), attempt=attempt, step=STEPS, loss=loss, num_samples=8))
    done = finished(attempt, STEPS, train_loss=loss, eval_loss_before=9.0, eval_loss_after=loss)
    write_record(run.finished(attempt), done)
    return 0


def loss_of(rate: float) -> float:
    """Least where the learning rate is 1e-3."""
    return 1.0 + (math.log10(rate) + 3.0) ** 2


def failed(attempt: int) -> Failed:
    return Failed(
        attempt=attempt,
        time_s=time.time(),
        rank=0,
        host="here",
        error_type="ValueError",
        message="the cell was told to fail",
        traceback="ValueError: the cell was told to fail",
    )


if __name__ == "__main__":
    sys.exit(main())
