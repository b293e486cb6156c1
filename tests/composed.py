"""Jobs composed for tests as the command line would, on a host that the test describes."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.core.config_store import ConfigStore

from launcher.compose import make_spec, plain
from launcher.devices import find_device
from launcher.errors import InputError
from launcher.host import Host
from launcher.paths import conf_dir
from launcher.schema import JobConf
from launcher.spec import JobSpec
from launcher.units import GIB


def host(gpu: str | None = None, num_gpus: int = 8, num_cores: int = 2, ram_bytes: int = 24 * GIB) -> Host:
    """A host with `num_gpus` of a listed card, or with none."""
    return Host(
        hostname="testhost",
        num_gpus=num_gpus if gpu else 0,
        gpu=find_device(gpu) if gpu else None,
        gpu_names=(gpu,) * num_gpus if gpu else (),
        gpu_driver="580.65" if gpu else None,
        gpu_problem=None if gpu else "no NVIDIA driver",
        num_cores=num_cores,
        ram_total_bytes=ram_bytes,
        ram_available_bytes=ram_bytes,
    )


def compose_conf(*overrides: str) -> dict[str, Any]:
    """What Hydra composes from conf/ and overrides."""
    ConfigStore.instance().store(name="job_schema", node=JobConf)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return plain(hydra.compose(config_name="config", overrides=list(overrides)))


def spec_of(*overrides: str, on: Host | None = None) -> JobSpec:
    """The frozen job that overrides mean on a host (without GPU, unless told otherwise)."""
    return make_spec(compose_conf(*overrides), on or host())


def problems_of(*overrides: str, on: Host | None = None) -> list[str]:
    """Everything that is wrong with a job, one text each; empty when it is accepted."""
    try:
        spec_of(*overrides, on=on)
    except InputError as error:
        return [str(problem) for problem in error.problems]
    return []
