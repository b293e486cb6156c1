"""Process 1 of a namespace: run the commands of a file, then reap orphans for as long as the namespace lives.

    python -I -S init.py STEPS.json [--tied]

Run as a script with nothing but the standard library, because it starts in a few milliseconds that way. When it has
run every command it writes STEPS.ready. --tied ends the namespace when stdin is closed, that is with its owner.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

STEP_TIMEOUT_S = 20.0


def run_steps(path: str) -> None:
    for step in json.loads(Path(path).read_text()):
        done = subprocess.run(step, stdin=subprocess.DEVNULL, timeout=STEP_TIMEOUT_S, check=False)
        if done.returncode:
            sys.exit(f"{shlex.join(step)}: exit code {done.returncode}")


def reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    path, tied = sys.argv[1], "--tied" in sys.argv[2:]
    run_steps(path)
    signal.signal(signal.SIGCHLD, reap)
    reap()
    Path(path).with_suffix(".ready").touch()
    if tied:
        while os.read(0, 1):
            pass
    else:
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
