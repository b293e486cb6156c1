"""The environment that sbatch is run in: slurmctld stores it with the job, and gives it to the job.

An allow-list: no secret of the user's shell, and none of SBATCH_*, which would overrule the script's own options.
"""

from __future__ import annotations

from collections.abc import Mapping

NAMES = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "BASH_ENV", "CUDA_HOME", "LD_LIBRARY_PATH",
        "SLURM_CONF", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "FITLAUNCH_CACHE", "FITLAUNCH_CALIBRATION",
        "LOADEDMODULES", "_LMFILES_",
    }
)  # fmt: skip
# Modules work by a shell function that the environment carries.
PREFIXES = ("LC_", "LMOD_", "MODULE", "BASH_FUNC_module%%", "BASH_FUNC_ml%%", "BASH_FUNC__module_raw%%")


def job_environment(environ: Mapping[str, str], named: tuple[str, ...]) -> dict[str, str]:
    """What of the environment a job takes along; named: variables that the user asks for besides."""
    return {
        name: value for name, value in environ.items() if name in NAMES or name in named or name.startswith(PREFIXES)
    }
