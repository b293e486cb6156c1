"""A rank that trains nothing: a real process with the job's own start, stop, watch, fence and checkpoints.

    python -m tests.faults.stub_rank DIR

By itself it joins nobody and needs no torch: rank 0 steps, saves and writes the markers, the others step beside it, and
all of them miss a rank that dies (stub_peers). Its environment says what else it does:
- STUB_JOIN=1: real collectives of gloo, so that a rank that dies takes its peers with it;
- STUB_LOAD_S, STUB_STEPS, STUB_STEP_S: how long it takes to the first step, how many there are, how long each takes;
- STUB_SAVE_EVERY, STUB_SAVE_S: a checkpoint every so many steps, and how long one takes;
- STUB_MODE: what goes wrong, on rank STUB_RANK (1): raise (at step 3), exit (at step 3, code 9, without a word), eat
  (at step 3, 2 GiB), hang (never comes to the end of the step after a stop was asked), stubborn (the same, and TERM is
  ignored); or linger (rank 0 does not exit when all is done).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jobs.checkpoint import MANIFEST, PREFIX, discard, find_newest, require_resumable, rotate, step_of, write_manifest
from jobs.fence import Fence, Superseded
from jobs.journal import Journal
from jobs.start import Start, read_start, verify_plan
from jobs.stop import StopRequest
from jobs.watch import watch
from launcher.runs.layout import RunFolder
from launcher.runs.records import Stopped, write_record
from launcher.spec import read_job
from tests.faults.stub_peers import Peers
from tests.markers import finished, started, stepped

NUM_STEPS = int(os.environ.get("STUB_STEPS", "5"))
LOAD_S = float(os.environ.get("STUB_LOAD_S", "0"))
STEP_S = float(os.environ.get("STUB_STEP_S", "0.05"))
SAVE_EVERY = int(os.environ.get("STUB_SAVE_EVERY", "0"))
SAVE_S = float(os.environ.get("STUB_SAVE_S", "0"))
JOINS = bool(os.environ.get("STUB_JOIN"))
FAULTY_RANK = int(os.environ.get("STUB_RANK", "1"))


def main() -> None:
    run = RunFolder(Path(sys.argv[1]))
    start = read_start(os.environ)
    journal = Journal(run=run, start=start)
    watch(start)
    stop = StopRequest(run.stop_file(start.attempt))
    stop.listen()
    try:
        verify_plan(run, start.plan_hash)
        Stub(run, start, journal, stop).train()
    except Exception as error:
        journal.failed(error)
        raise


class Stub:
    def __init__(self, run: RunFolder, start: Start, journal: Journal, stop: StopRequest) -> None:
        self.run = run
        self.start = start
        self.journal = journal
        self.stop = stop
        self.spec = read_job(run.job)
        self.fence = Fence(run=run, attempt=start.attempt)
        self.group = join() if JOINS else None
        self.peers = None if JOINS else Peers(run.attempt(start.attempt), start.rank, start.world_size)
        self.mode = os.environ.get("STUB_MODE", "")
        if self.mode == "stubborn" and start.rank == FAULTY_RANK:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def train(self) -> None:
        print(f"rank {self.start.rank} is up", flush=True)
        time.sleep(LOAD_S)
        resumed = self.resumed_from()
        if self.start.is_first_rank:
            marker = started(self.start.attempt, world_size=self.start.world_size, resumed_from_step=resumed)
            write_record(self.run.started(self.start.attempt), marker)
        step = resumed or 0
        asked = False
        while step < NUM_STEPS and not asked:
            step += 1
            asked = self.step(step)
            if step < NUM_STEPS and (asked or (SAVE_EVERY and step % SAVE_EVERY == 0)):
                self.save(step)
        self.close(step)

    def step(self, step: int) -> bool:
        """One step; whether all ranks are to stop after it."""
        time.sleep(STEP_S)
        self.misbehave(step)
        if self.peers is not None:
            self.peers.check()
        asked, superseded = self.agree()
        if superseded:
            raise Superseded(f"a later attempt of this run was started: step {step} is not kept")
        # The loss follows from the step alone: whoever interrupted the run, it ends with the same.
        self.journal.metrics(stepped(self.start.attempt, step, NUM_STEPS, loss=1.0 / step))
        return asked

    def close(self, step: int) -> None:
        if self.start.is_first_rank:
            self.fence.check()
            if step == NUM_STEPS:
                done = finished(self.start.attempt, NUM_STEPS, train_loss=1.0 / NUM_STEPS)
                write_record(self.run.finished(self.start.attempt), done)
            else:
                write_record(self.run.stopped(self.start.attempt), self.stopped(step))
        while self.mode == "linger" and self.start.is_first_rank:
            time.sleep(0.1)
        if self.peers is not None:
            self.peers.leave()
        if self.group is not None:
            self.group.barrier()
            self.group.destroy_process_group()

    def agree(self) -> tuple[bool, bool]:
        """Whether to stop, and whether a later attempt was started."""
        wants = [float(self.stop.cause() is not None), float(self.start.is_first_rank and self.fence.is_down())]
        if self.group is not None:
            import torch

            total = torch.tensor(wants)
            self.group.all_reduce(total)
            wants = total.tolist()
        return bool(wants[0]), bool(wants[1])

    def misbehave(self, step: int) -> None:
        if self.start.rank != FAULTY_RANK:
            return
        if self.mode == "raise" and step == 3:
            raise ValueError("the stub was told to fail\nwith a second line")
        if self.mode == "exit" and step == 3:
            os._exit(9)
        if self.mode == "eat" and step == 3:
            self.eaten = bytearray(b"x" * (2 << 30))
        while self.mode in ("hang", "stubborn") and self.stop.cause():
            time.sleep(0.1)

    def resumed_from(self) -> int | None:
        found = find_newest(self.run)
        if found.folder is None or found.manifest is None:
            return None
        require_resumable(found.folder, found.manifest, run_id=self.run.root.name, spec=self.spec, user=os.getuid())
        return step_of(found.folder)

    def save(self, step: int) -> None:
        """As the job does it: rank 0 looks at the fence before it writes, before the manifest, before the rotation."""
        if not self.start.is_first_rank:
            return
        self.fence.check()
        folder = self.run.checkpoints / f"{PREFIX}{step}"
        discard(folder)
        folder.mkdir(parents=True)
        (folder / "states.bin").write_bytes(step.to_bytes(8, "big"))
        time.sleep(SAVE_S)
        self.fence.check()
        write_manifest(
            folder,
            run_id=self.run.root.name,
            attempt=self.start.attempt,
            step=step,
            plan_hash=self.start.plan_hash,
            spec=self.spec,
            job_id=self.start.job_id,
        )
        self.fence.check()
        rotate(self.run, self.spec.train.keep_checkpoints)
        self.journal.stage("checkpoint", folder.name)

    def stopped(self, step: int) -> Stopped:
        folder = self.run.checkpoints / f"{PREFIX}{step}"
        return Stopped(
            attempt=self.start.attempt,
            time_s=time.time(),
            step=step,
            cause=self.stop.cause() or "a rank",
            checkpoint=str(folder) if (folder / MANIFEST).is_file() else None,
        )


def join() -> Any:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    return dist


if __name__ == "__main__":
    main()
