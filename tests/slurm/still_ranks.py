"""Ranks on several hosts that join nothing and import no torch, and the program that starts those of one node.

    python -m tests.slurm.still_ranks RUN_DIR

Without RANK in its environment it starts STILL_PER_NODE ranks, as torchrun does: each in a session of its own, with a
log of its own; when one fails it ends the others. With RANK, set by DeepSpeed's launcher, it is one.
STILL_STEPS: after so many steps of a tenth of a second the run is finished. STILL_MODE: stubborn (neither a stop file
nor TERM is heeded), stuck (all ranks wait for ever after some seconds), fail (and the last one is killed then).
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs.journal import Journal
from jobs.start import read_start, verify_plan
from jobs.stop import StopRequest
from jobs.watch import watch
from launcher.runs.layout import RunFolder
from launcher.runs.records import Stopped, write_record
from tests.markers import finished, started, stepped

STEP_S = 0.1
CLOSING_S = 1.0  # torchrun gives the others half a minute after TERM
LONG_STEPS = 40  # time for the agents to have seen every rank
MODE = os.environ.get("STILL_MODE", "")
SECRET = "STILL_SECRET_TOKEN"


def start_ranks() -> int:
    per_node, node = int(os.environ["STILL_PER_NODE"]), int(os.environ["FITLAUNCH_NODE"])
    ranks = []
    for local in range(per_node):
        log = Path(f"logs/still/attempt_0/{local}")
        log.mkdir(parents=True)
        place = {
            "RANK": str(node * per_node + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(per_node * int(os.environ["STILL_NODES"])),
        }
        with (log / "stderr.log").open("wb") as errors:
            argv = (sys.executable, "-m", "tests.slurm.still_ranks", *sys.argv[1:])
            ranks.append(subprocess.Popen(argv, env=os.environ | place, stderr=errors, start_new_session=True))
    while None in (codes := [rank.poll() for rank in ranks]):
        if any(codes):
            tell(codes, ranks, node * per_node)
            time.sleep(CLOSING_S)
            for rank in ranks:
                rank.kill()
        time.sleep(STEP_S)
    return 1 if any(codes) else 0


def tell(codes: list[int | None], ranks: list[subprocess.Popen[bytes]], first: int) -> None:
    """Who failed, in torchrun's words."""
    local = next(number for number, code in enumerate(codes) if code)
    print(f"  rank      : {first + local} (local_rank: {local})")
    print(f"  exitcode  : {codes[local]} (pid: {ranks[local].pid})", flush=True)


def be_a_rank() -> None:
    run, start = RunFolder(Path(sys.argv[1])), read_start(os.environ)
    journal = Journal(run=run, start=start)
    watch(start)
    request = StopRequest(run.stop_file(start.attempt))
    request.listen()
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        verify_plan(run, start.plan_hash)
    except Exception as error:
        journal.failed(error)
        raise
    tell_of_the_secret(run, start.rank)
    if start.is_first_rank:
        write_record(run.started(start.attempt), started(start.attempt, world_size=start.world_size))
    num_steps = int(os.environ.get("STILL_STEPS", "100000"))
    for step in range(1, num_steps + 1):
        time.sleep(STEP_S)
        if MODE in ("fail", "stuck") and step == LONG_STEPS:
            meet_in_vain(dies=MODE == "fail" and start.rank == start.world_size - 1)
        journal.metrics(stepped(start.attempt, step, num_steps))
        if MODE != "stubborn" and request.cause() is not None:
            if start.is_first_rank:
                cause = request.cause() or ""
                stopped = Stopped(attempt=start.attempt, time_s=time.time(), step=step, cause=cause, checkpoint=None)
                write_record(run.stopped(start.attempt), stopped)
            return
    if start.is_first_rank:
        write_record(run.finished(start.attempt), finished(start.attempt, num_steps))


def meet_in_vain(*, dies: bool) -> None:
    """What a collective is to the others when one of them dies, or its host: they wait, and no Python is run."""
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(STEP_S)


def tell_of_the_secret(run: RunFolder, rank: int) -> None:
    """That it came, without saying what it is."""
    if SECRET in os.environ:
        text = hashlib.sha256(os.environ[SECRET].encode()).hexdigest()
        (run.root / f"secret-{rank}").write_text(text)


if __name__ == "__main__":
    if "RANK" in os.environ:
        be_a_rank()
    else:
        sys.exit(start_ranks())
