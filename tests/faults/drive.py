"""The launcher's process in the fault tests: start or resume a run folder, follow it, exit with its exit code."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.errors import FitlaunchError
from launcher.runs.layout import RunFolder
from launcher.targets.start import start_attempt


def main() -> int:
    run, grace_s = RunFolder(Path(sys.argv[1])), float(sys.argv[2])
    try:
        outcome = start_attempt(run, say=lambda text: print(text, file=sys.stderr, flush=True), stop_grace_s=grace_s)
    except FitlaunchError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    print(outcome.status, outcome.first_cause, *outcome.log_tail, sep="\n", flush=True)
    return outcome.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
