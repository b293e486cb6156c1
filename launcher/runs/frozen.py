"""The frozen plan of a run as it lies on the disk, proven to be the one that was written."""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.errors import SubmitError
from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.spec import content_hash


def read_launch_plan(run: RunFolder) -> LaunchPlan:
    """The frozen plan of a run, proven unchanged. Raises SubmitError that names everything that changed."""
    try:
        text = run.launch.read_text()
        expected = run.launch_hash.read_text().split()[0]
        launch = msgspec.json.decode(text, type=LaunchPlan)
    except (OSError, IndexError, msgspec.DecodeError) as error:
        raise SubmitError(f"{run.root} is no run folder that can be started: {error}") from error
    changed = [name for name, content in launch.files.items() if not _holds(run.root / name, content)]
    if content_hash(text) != expected:
        changed.insert(0, run.launch.name)
    if changed:
        raise SubmitError(
            f"{', '.join(changed)} in {run.root} changed after it was rendered; "
            "what was planned is no longer what would run: launch again with the options you want"
        )
    if not _is_same_folder(Path(launch.run_dir), run.root):
        raise SubmitError(f"{run.root} was rendered as {launch.run_dir} and moved since: move it back, or launch again")
    return launch


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _is_same_folder(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False
