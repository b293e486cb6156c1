"""The launcher's process in these tests: hand a run folder to Slurm, say what came of it, exit with its exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.errors import FitlaunchError
from launcher.runs.layout import RunFolder
from launcher.targets.slurm import submit_run


def main() -> int:
    run, timeout_s = RunFolder(Path(sys.argv[1])), float(sys.argv[2])
    try:
        submitted = submit_run(run, os.environ, timeout_s=timeout_s)
    except FitlaunchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("new" if submitted.is_new else "found", submitted.submission.number, submitted.submission.job_id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
