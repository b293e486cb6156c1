"""The cells of a sweep, composed without Hydra, are what Hydra composes: the job and Hydra's own node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from launcher.paths import conf_dir
from launcher.schema import JobConf
from launcher.sweeps.loader import CellLoader

CELLS = (
    (),
    ("model=llama3-8b", "method=qlora", "train.learning_rate=0.0001"),
    ("method.targets=[q_proj,v_proj]", "experiment=demo", "cluster=slurm"),
    ("tracker.project='a b'", "train.max_steps=null", "train.packing=true"),
    ("tracker.project=a\\,b", "gpus=8"),  # an escape: only Hydra reads it
)


@pytest.fixture
def hydras() -> Iterator[tuple[ConfigLoaderImpl, DictConfig]]:
    """Hydra's loader and what it composed for the multirun."""
    before = Singleton.get_state()
    setup_globals()
    Plugins.instance()
    ConfigStore.instance().store(name="job_schema", node=JobConf)
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
    options = ["hydra.sweep.dir=/scratch", "hydra.sweep.subdir=.", "method=lora,qlora"]
    yield loader, loader.load_configuration("config", options, run_mode=RunMode.MULTIRUN)
    Singleton.set_state(before)


@pytest.mark.parametrize("overrides", CELLS, ids=" ".join)
def test_a_cell_is_what_hydra_composes(overrides: tuple[str, ...], hydras: tuple[ConfigLoaderImpl, DictConfig]) -> None:
    loader, master = hydras
    theirs, ours = (
        each.load_sweep_config(master, list(overrides)) for each in (loader, CellLoader(loader, conf_dir()))
    )
    assert OmegaConf.to_container(ours, resolve=False) == OmegaConf.to_container(theirs, resolve=False)


def test_what_was_checked_is_what_runs_and_nothing_is_kept(hydras: tuple[ConfigLoaderImpl, DictConfig]) -> None:
    loader, master = hydras
    cells = CellLoader(loader, Path(conf_dir()))
    checked = cells.load_sweep_config(master, ["gpus=1"])
    assert cells.load_sweep_config(master, ["gpus=1"]) is checked
    assert cells.load_sweep_config(master, ["gpus=1"]) is not checked
