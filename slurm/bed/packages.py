"""The Debian packages that a bed needs, and their installation.

    python3 slurm/bed/packages.py [--install]

Runs with the system's own Python: it is needed before there is a virtual environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "ip": "iproute2",
    "munged": "munge",
    "nsenter": "util-linux",
    "pdsh": "pdsh",
    "sbatch": "slurm-client",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
}
SERVICES = ("munge", "slurmctld", "slurmd", "ssh", "ssh.socket")
SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
POLICY = Path("/usr/sbin/policy-rc.d")
APT_TIMEOUT_S = 900


def missing_packages() -> tuple[str, ...]:
    """The packages of the commands that are not there."""
    return tuple(sorted({name for command, name in PACKAGES.items() if not shutil.which(command, path=SEARCH)}))


def install_command(packages: tuple[str, ...]) -> tuple[str, ...]:
    """How apt installs these packages, and nothing that they merely recommend."""
    return ("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages)


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """Debian's packages ask this file whether they may start their services. A file that is there is left alone."""
    made = not POLICY.exists()
    if made:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if made:
            POLICY.unlink(missing_ok=True)


def disable_services(before: frozenset[str]) -> None:
    """Keep the services of what was installed from starting with the machine."""
    new = [name for name in SERVICES if name not in before and _is_enabled(name)]
    if new:
        _systemctl("disable", *new).check_returncode()


def enabled_services() -> frozenset[str]:
    """The services that start with the machine already."""
    return frozenset(name for name in SERVICES if _is_enabled(name))


def _is_enabled(name: str) -> bool:
    return bool(shutil.which("systemctl")) and _systemctl("is-enabled", name).returncode == 0


def _systemctl(*words: str) -> subprocess.CompletedProcess[bytes]:
    command = ("systemctl", "--quiet", *words)
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def install(packages: tuple[str, ...]) -> None:
    """Install packages as root. Nothing starts, now or with the machine."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    before = enabled_services()
    with no_service_starts():
        for command in (("apt-get", "update", "--quiet"), install_command(packages)):
            subprocess.run(command, env=environment, timeout=APT_TIMEOUT_S, check=True)
    disable_services(before)


def main(arguments: list[str]) -> int:
    """Exit code 0: all is there; 2: something is missing and was not, or could not be, installed."""
    packages = missing_packages()
    if not packages:
        return 0
    wanted = f"the test cluster needs {' '.join(packages)}"
    if "--install" not in arguments:
        print(f"{wanted}: sudo {' '.join(install_command(packages))}", file=sys.stderr)  # noqa: T201
        return 2
    if not shutil.which("apt-get"):
        print(f"{wanted} (as Debian names them), and there is no apt-get here", file=sys.stderr)  # noqa: T201
        return 2
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            print(f"{wanted}: as root, {' '.join(install_command(packages))}", file=sys.stderr)  # noqa: T201
            return 2
        os.execvp("sudo", ("sudo", sys.executable, str(Path(__file__).resolve()), "--install"))  # noqa: S606
    try:
        install(packages)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"{wanted}, and they could not be installed: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
