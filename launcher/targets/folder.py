"""The run folder as the frozen plan on disk: written whole or not at all. launcher.runs.frozen reads it back."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

from launcher.errors import SubmitError
from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.records import RunState, Status, write_atomically, write_record
from launcher.spec import to_json


def write_run_folder(launch: LaunchPlan, *, now_s: float) -> RunFolder:
    """Write the plan and its files; the folder appears under its name only when all of it is there.

    launch.json is the plan's JSON to the byte, so its sha256 is the plan's hash; launch.sha256 is in the form
    that `sha256sum -c` reads. Raises SubmitError where the run exists already or the disk refuses.
    """
    run = RunFolder(Path(launch.run_dir))
    if run.root.exists():
        raise SubmitError(f"{run.root} exists already: a run is written once")
    try:
        run.root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=run.root.parent, prefix=f".{launch.run_id}."))
        try:
            _write_files(RunFolder(temporary), launch, now_s)
            temporary.chmod(0o755)
            temporary.rename(run.root)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise SubmitError(f"the run folder {run.root} cannot be written: {error.strerror or error}") from error
    return run


def _write_files(run: RunFolder, launch: LaunchPlan, now_s: float) -> None:
    write_atomically(run.launch, to_json(launch))
    write_atomically(run.launch_hash, f"{launch.hash}  {run.launch.name}\n")
    for name, text in launch.files.items():
        write_atomically(run.root / name, text)
    state = RunState(
        run_id=launch.run_id,
        status=Status.RENDERED,
        attempt=0,
        created_at_s=now_s,
        updated_at_s=now_s,
        host=socket.gethostname(),
    )
    write_record(run.state, state)
