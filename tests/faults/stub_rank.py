"""A rank that trains nothing: real processes, real collectives, the job's own start, stop and watch.

    python -m tests.faults.stub_rank DIR

STUB_MODE in its environment says what goes wrong: raise (rank 1 raises at step 3), hang (rank 1 never comes to the
end of the step after a stop was asked), stubborn (the same, and TERM is ignored), linger (rank 0 does not exit when
all is done).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from jobs.journal import Journal
from jobs.start import Start, read_start, verify_plan
from jobs.stop import StopRequest
from jobs.watch import watch
from launcher.runs.layout import RunFolder
from launcher.runs.records import Finished, Started, Stopped, TrainMetrics, write_record

NUM_STEPS = int(os.environ.get("STUB_STEPS", "5"))
STEP_S = float(os.environ.get("STUB_STEP_S", "0.05"))
MODE = os.environ.get("STUB_MODE", "")


def main() -> None:
    run = RunFolder(Path(sys.argv[1]))
    start = read_start(os.environ)
    journal = Journal(run=run, start=start)
    watch(start.launcher)
    stop = StopRequest(run.stop_file(start.attempt))
    stop.listen()
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        verify_plan(run, start.plan_hash)
        train(run, start, journal, stop)
    except Exception as error:
        journal.failed(error)
        raise


def train(run: RunFolder, start: Start, journal: Journal, stop: StopRequest) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    print(f"rank {start.rank} is up", flush=True)
    dist.barrier()
    if start.is_first_rank:
        write_record(run.started(start.attempt), started(start))
    for step in range(1, NUM_STEPS + 1):
        time.sleep(STEP_S)
        misbehave(start, stop, step)
        wants = torch.tensor([float(stop.cause() is not None)])
        dist.all_reduce(wants, op=dist.ReduceOp.MAX)
        journal.metrics(train_metrics(start, step))
        if wants.item():
            if start.is_first_rank:
                write_record(run.stopped(start.attempt), stopped(start, step, stop.cause() or "a rank"))
            dist.destroy_process_group()
            return
    if start.is_first_rank:
        write_record(run.finished(start.attempt), finished(start))
    while MODE == "linger" and start.is_first_rank:
        time.sleep(0.1)
    dist.destroy_process_group()


def misbehave(start: Start, stop: StopRequest, step: int) -> None:
    if start.rank != 1:
        return
    if MODE == "raise" and step == 3:
        raise ValueError("the stub was told to fail\nwith a second line")
    while MODE in ("hang", "stubborn") and stop.cause():
        time.sleep(0.1)


def started(start: Start) -> Started:
    return Started(
        attempt=start.attempt,
        time_s=time.time(),
        world_size=start.world_size,
        device="cpu",
        wrapper="none",
        resumed_from_step=None,
        num_parameters=0,
        num_trainable_parameters=0,
        num_train_samples=0,
        num_eval_samples=0,
        num_truncated_samples=0,
        versions={},
        checks={},
    )


def train_metrics(start: Start, step: int) -> TrainMetrics:
    return TrainMetrics(
        time_s=time.time(),
        attempt=start.attempt,
        step=step,
        num_steps=NUM_STEPS,
        epoch=0.0,
        loss=1.0 / step,
        learning_rate=1e-4,
        grad_norm=None,
        samples_per_s=0.0,
        tokens_per_s=0.0,
    )


def stopped(start: Start, step: int, cause: str) -> Stopped:
    return Stopped(attempt=start.attempt, time_s=time.time(), step=step, cause=cause, checkpoint=None)


def finished(start: Start) -> Finished:
    return Finished(
        attempt=start.attempt,
        time_s=time.time(),
        num_steps=NUM_STEPS,
        train_loss=1.0,
        eval_loss_before=None,
        eval_loss_after=None,
        samples_per_s=0.0,
        tokens_per_s=0.0,
        train_time_s=0.0,
        result="result",
    )


if __name__ == "__main__":
    main()
