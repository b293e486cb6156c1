"""What every rank runs: `python -m jobs.train RUN_FOLDER`, started by torchrun or deepspeed.

Truth is left in the run folder: started.json once the job has checked itself, then finished.json or stopped.json,
written last, by rank 0; failed-rank-<r>.json by whichever rank fails.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch.distributed.elastic.multiprocessing.errors import record

from jobs.journal import Journal
from jobs.start import read_start, verify_environment, verify_plan
from jobs.stop import StopRequest
from jobs.watch import watch
from launcher.runs.layout import RunFolder
from launcher.spec import read_job

if TYPE_CHECKING:
    from jobs.phases import Phases


@record
def main() -> None:
    """Run one rank of one job."""
    run = RunFolder(_parse_run())
    start = read_start(os.environ)
    watch(start)
    journal = Journal(run=run, start=start)
    request = StopRequest(run.stop_file(start.attempt))
    request.listen()
    phases: Phases | None = None
    try:
        verify_plan(run, start.plan_hash)
        spec = read_job(run.job)
        import torch  # the imports of the job take seconds: a refused plan is told before

        verify_environment(spec, os.environ, num_cuda_devices=torch.cuda.device_count())
        journal.stage("import libraries")
        from jobs.job import Job

        job = Job(spec=spec, run=run, start=start, journal=journal, request=request)
        phases = job.phases
        job.run_to_end()
    except BaseException as error:
        journal.failed(error, **({} if phases is None else phases.place))
        raise


def _parse_run() -> Path:
    parser = argparse.ArgumentParser(prog="jobs.train", description="One rank of a fitlaunch job.")
    # positional: torchrun takes an option --run for an abbreviation of its own --run-path
    parser.add_argument("run", type=Path, help="the run folder")
    return Path(parser.parse_args().run).resolve()


if __name__ == "__main__":
    main()
