"""Hand a sweep's arrays to Slurm, each exactly once, however often and from wherever it is tried.

As for a single run (launcher.targets.slurm): what is about to be sent is written down first, under a name that Slurm
keeps; whoever finds an array of which nobody knows whether it was sent asks Slurm for that name.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from launcher.errors import Interrupted, SubmitError
from launcher.render.sbatch import job_name, submit_argv
from launcher.runs.called import sweep_command
from launcher.runs.layout import RunFolder
from launcher.runs.records import Submission, read_record, write_atomically, write_record
from launcher.runs.sweeps import ArraySubmission, Sweep, SweepFolder, read_arrays
from launcher.scheduler.client import ASK_TIMEOUT_S, SchedulerRefused, SchedulerSilent, ask
from launcher.scheduler.environment import job_environment
from launcher.scheduler.jobs import my_jobs, named
from launcher.sweeps.arrays import SweepArray, array_name
from launcher.targets.site import with_meaning
from launcher.targets.slurm import SETTLE_S, parse_job_id, take_back


def write_array(folder: SweepFolder, number: int, array: SweepArray, script: str) -> None:
    """The files that the array's job reads."""
    cells = "".join(f"{element.run.root}\n" for element in array.elements)
    write_atomically(folder.cells_file(number), cells)
    write_atomically(folder.script(number), script)


def send_array(
    folder: SweepFolder,
    number: int,
    array: SweepArray,
    environ: Mapping[str, str],
    *,
    timeout_s: float = ASK_TIMEOUT_S,
) -> ArraySubmission:
    """Submit the n-th array, whose files are written; the caller holds the sweep's lock.

    Raises SubmitError where Slurm refuses it, and, as SchedulerSilent, where nobody answers: it may be queued then;
    Interrupted where the sweep was cancelled meanwhile.
    """
    if folder.cancelled.exists():
        raise Interrupted(f"sweep {folder.root.name} was cancelled while it was submitted")
    asked = ArraySubmission(
        number=number,
        cells=tuple(element.number for element in array.elements),
        submission=array.submission,
        job_name=job_name(array_name(folder, number)),
        time_s=time.time(),
    )
    before = [read_record(element.run.submission, Submission) for element in array.elements]
    write_record(folder.array(number), asked)
    for task, element in enumerate(array.elements):
        submission = Submission(
            number=asked.submission,
            cluster=array.spec.cluster.name,
            job_name=asked.job_name,
            time_s=asked.time_s,
            array_task=task,
            sweep=folder.root.name,
        )
        write_record(element.run.submission, submission)
        element.run.cancelled.unlink(missing_ok=True)
    argv = (*submit_argv(str(folder.script(number))), str(array.submission))
    try:
        said = ask(argv, env=job_environment(environ, array.spec.cluster.environment), timeout_s=timeout_s)
    except SchedulerRefused as refused:
        folder.array(number).unlink()
        for element, record in zip(array.elements, before, strict=True):
            take_back(element.run, record)
        raise SubmitError(f"Slurm refuses an array of the sweep: {with_meaning(str(refused))}") from None
    except SchedulerSilent as silent:
        raise SchedulerSilent(
            f"{silent}: the sweep may be queued all the same; `{sweep_command('status', folder.root)}` looks for it, "
            f"and `{sweep_command('retry', folder.root)}` sends what is not there"
        ) from None
    sent = dataclasses.replace(asked, job_id=parse_job_id(said))
    _settle(folder, sent, {element.number: element.run for element in array.elements})
    return sent


def adopt(folder: SweepFolder, sweep: Sweep, *, settle_s: float = SETTLE_S) -> None:
    """Take down the ids of arrays that were sent by somebody who did not live to hear of them.

    One that Slurm does not know keeps none. Raises SchedulerSilent. The caller holds the sweep's lock.
    """
    arrays = read_arrays(folder)
    if all(array.job_id is not None for array in arrays):
        return
    found = _ids_by_name(arrays)
    if len(found) < sum(array.job_id is None for array in arrays):
        time.sleep(settle_s)  # a controller that hung works off what it was sent before
        found = _ids_by_name(arrays)
    runs = {cell.number: folder.run(cell) for cell in sweep.cells}
    for array in arrays:
        if array.job_id is None and array.job_name in found:
            _settle(folder, dataclasses.replace(array, job_id=found[array.job_name]), runs)


def _ids_by_name(arrays: Sequence[ArraySubmission]) -> dict[str, str]:
    """The array's own id, 17 of element 17_3, for each name that Slurm knows and nobody had an id of."""
    jobs = my_jobs()
    wanted = [array.job_name for array in arrays if array.job_id is None]
    return {name: found[0].job_id.partition("_")[0] for name in wanted if (found := named(jobs, name))}


def _settle(folder: SweepFolder, sent: ArraySubmission, runs: Mapping[int, RunFolder]) -> None:
    """Write down under which job each run is: last in the sweep's own record, so that half of it is done again."""
    for task, number in enumerate(sent.cells):
        newest = read_record(runs[number].submission, Submission)
        if newest is not None and newest.job_name == sent.job_name:
            job_id = f"{sent.job_id}_{task}"
            write_record(runs[number].submission, dataclasses.replace(newest, job_id=job_id))
    write_record(folder.array(sent.number), sent)
