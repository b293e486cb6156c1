"""What a bed says of itself without starting one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm.bed import Bed, BedError, BedSettings, files
from slurm.bed import packages as packages_module
from slurm.bed.boot import head_steps
from slurm.bed.packages import PACKAGES, install_command, main, missing_packages


def without_commands(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None if name in names else f"/usr/bin/{name}")


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_commands(monkeypatch, "munged", "sshd")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BedError) as caught:
        Bed(tmp_path / "bed").up()
    assert str(caught.value) == (
        "a bed needs\n"
        "  packages: apt-get install --yes --quiet --no-install-recommends munge openssh-server\n"
        "  root: namespaces, mounts and links are made (sudo keeps everything inside them)"
    )
    assert caught.value.exit_code == 2
    assert not (tmp_path / "bed").exists()


def test_only_what_is_missing_is_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed: list[tuple[str, ...]] = []
    monkeypatch.setattr(packages_module, "install", installed.append)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    without_commands(monkeypatch)
    assert main(["--install"]) == 0
    without_commands(monkeypatch, "pdsh", "ssh", "ssh-keygen")
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "the test cluster needs openssh-client pdsh: sudo apt-get install --yes --quiet --no-install-recommends "
        "openssh-client pdsh\n"
    )
    assert main(["--install"]) == 0
    assert installed == [("openssh-client", "pdsh")]
    without_commands(monkeypatch, "pdsh", "apt-get")
    assert main(["--install"]) == 2
    assert capsys.readouterr().err == (
        "the test cluster needs pdsh (as Debian names them), and there is no apt-get here\n"
    )


def test_every_package_is_named_by_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without_commands(monkeypatch, *PACKAGES)
    assert install_command(missing_packages())[5:] == tuple(sorted(set(PACKAGES.values())))


def test_a_node_knows_itself_as_debian_would_have_it() -> None:
    settings = BedSettings(num_nodes=2, loopback_hostname=True)
    assert files.hosts(settings, settings.nodes[1]) == (
        "127.0.0.1 localhost\n10.77.0.1 head\n10.77.0.11 node1\n127.0.1.1 node2\n"
    )
    assert files.hosts(settings).endswith("10.77.0.12 node2\n")


def test_own_lines_stand_after_ours_and_before_the_nodes() -> None:
    lines = files.slurm_conf(BedSettings(num_nodes=1, num_gpus_per_node=0, slurm_conf=("MaxArraySize=5",))).splitlines()
    assert lines.index("MaxArraySize=1001") < lines.index("MaxArraySize=5")
    assert lines[lines.index("MaxArraySize=5") + 1] == (
        "NodeName=node1 NodeAddr=10.77.0.11 CPUs=16 RealMemory=64000 State=UNKNOWN"
    )


def test_nothing_is_mounted_before_the_hosts_mounts_are_private(tmp_path: Path) -> None:
    """unshare has made them so; the head shares its own with the nodes from its first step on."""
    steps = head_steps(BedSettings(), etc=tmp_path)
    assert steps[0] == ("mount", "--make-rshared", "/")
    copied = steps.index(("mount", "--bind", "/run/etc", "/etc"))
    writes_to_etc = [number for number, step in enumerate(steps) if "/etc" in step or "/etc/slurm" in step]
    assert min(writes_to_etc) == copied


@pytest.mark.parametrize("num_nodes", [0, 65])
def test_a_number_of_nodes_that_cannot_be(num_nodes: int) -> None:
    with pytest.raises(ValueError, match=f"num_nodes={num_nodes} is not in 1..64"):
        BedSettings(num_nodes=num_nodes)
