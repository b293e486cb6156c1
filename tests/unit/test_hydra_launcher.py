"""The sweep launcher as Hydra sees it: Hydra's own suite for launchers, whole; and that Hydra finds it installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import version
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def version_base() -> Iterator[None]:
    """Hydra's suite expects Hydra's own default; whoever composed in this process before has set another."""
    before = version.getbase()
    version.setbase("1.1")
    yield
    VersionBase.instance().version_base = before


@pytest.mark.parametrize(("launcher_name", "overrides"), [("fitlaunch", [])])
class TestLauncher(LauncherTestSuite):
    """Each task runs in process, in a folder and under a configuration of its own."""


@pytest.mark.parametrize(("launcher_name", "overrides"), [("fitlaunch", ["hydra.sweeper.max_batch_size=2"])])
class TestBatches(BatchedSweeperTestSuite):
    """A sweeper may hand over its cells in batches."""


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=fitlaunch"])])
class TestIntegration(IntegrationTestSuite):
    """As a whole process: names, folders and working directories."""


FIND = """
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
for launcher in Plugins.instance().discover(Launcher):
    print(launcher.__name__, launcher.launch.__code__.co_filename)
"""
OTHER = """
from hydra.plugins.launcher import Launcher
class OtherLauncher(Launcher):
    def setup(self, **options): ...
    def launch(self, job_overrides, initial_job_idx): ...
"""


def launchers(cwd: Path, first: Path) -> dict[str, Path]:
    """Every launcher that Hydra finds, and its file, in a process elsewhere that imports from `first`."""
    env = {"PYTHONPATH": str(first), "PATH": os.environ["PATH"]}
    command = (sys.executable, "-c", FIND)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=True)
    return {name: Path(path) for name, path in (line.split(" ", 1) for line in done.stdout.splitlines())}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as pip would install it: its own wheel, unpacked into a folder."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("target")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels))
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=120, check=True)
    (wheel,) = wheels.glob("*.whl")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", f"--target={target}")
    subprocess.run((*install, str(wheel)), capture_output=True, timeout=120, check=True)
    return target


def test_it_is_found_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    assert launchers(tmp_path, installed)["FitlaunchLauncher"].is_relative_to(installed)


def test_an_installed_sweep_plans_from_anywhere(installed: Path, tmp_path: Path) -> None:
    code = "import sys; from launcher.main import main; sys.exit(main())"
    command = (sys.executable, "-c", code, "-m", "mode=plan", "plan.format=json", "gpus=2,4")
    env = {"PYTHONPATH": str(installed), "PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [plan["spec"]["gpus_per_node"] for plan in json.loads(done.stdout)] == [2, 4]


def test_it_hides_no_other_plugin(tmp_path: Path) -> None:
    """From the checkout too, where hydra_plugins is a package with a file of its own."""
    plugin = tmp_path / "site" / "hydra_plugins" / "other_launcher"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(OTHER)
    found = launchers(tmp_path, tmp_path / "site")
    assert found["OtherLauncher"] == plugin / "__init__.py"
    assert found["FitlaunchLauncher"] == ROOT / "hydra_plugins" / "fitlaunch_launcher" / "launcher.py"
