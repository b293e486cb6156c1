"""What a host must have for a bed."""

from __future__ import annotations

import os
import sys

from slurm.bed.commands import ALL_NAMESPACES, run
from slurm.bed.errors import BedError
from slurm.bed.packages import install_command, missing_packages

TRIAL_TIMEOUT_S = 60.0


def require_what_it_needs() -> None:
    """Say everything that is missing, at once."""
    missing = []
    if sys.platform != "linux":
        raise BedError("a bed is made of Linux namespaces")
    if packages := missing_packages():
        missing.append(f"packages: {' '.join(install_command(packages))}")
    if os.geteuid() != 0:
        missing.append("root: namespaces, mounts and links are made (sudo keeps everything inside them)")
    elif not packages:
        tried = run(("unshare", "--mount", *ALL_NAMESPACES[1:], "--fork", "true"), timeout_s=TRIAL_TIMEOUT_S)
        if tried.returncode:
            missing.append(f"the right to make namespaces (in a container: --privileged): {tried.stderr.strip()}")
    if missing:
        raise BedError("a bed needs\n" + "\n".join(f"  {each}" for each in missing))
