"""What a killed process was about to write lies under a name that nobody reads, until somebody removes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from launcher.runs.records import discard_half_written, write_atomically, write_exclusively

# Killed where the new file is whole and has not its name yet.
KILLED_AMID_A_WRITE = """
import os, signal, sys
from pathlib import Path
from launcher.runs.records import write_atomically
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), "new")
"""


def test_what_the_dead_were_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    record = tmp_path / "attempts" / "1" / "end.json"
    write_atomically(record, "old")
    done = subprocess.run((sys.executable, "-c", KILLED_AMID_A_WRITE, str(record)), check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(record.parent.iterdir())) == 2
    of_the_living = tmp_path / f".state.json.{os.uname().nodename}.{os.getpid()}.abc12345"
    of_elsewhere = tmp_path / ".state.json.another-host.1073741824.abc12345"
    lock = tmp_path / ".lock"
    for path in (of_the_living, of_elsewhere, lock):
        path.touch()
    discard_half_written(tmp_path)
    assert list(record.parent.iterdir()) == [record]
    assert record.read_text() == "old"
    assert {*tmp_path.glob(".*")} == {of_the_living, of_elsewhere, lock}


def test_whole_files_leave_nothing_beside_them(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "1")
    assert write_exclusively(tmp_path / "b", "1")
    assert not write_exclusively(tmp_path / "b", "2")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
