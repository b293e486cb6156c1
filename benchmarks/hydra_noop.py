"""A Hydra app that composes the launcher's own configuration and does nothing: what `launch.py mode=plan` is timed
beside (benchmarks/latency.py)."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore

from launcher.schema import JobConf

CONF = Path(__file__).parents[1] / "conf"


@hydra.main(version_base=None, config_path=str(CONF), config_name="config")
def main(conf: object) -> None:
    """Nothing: the composition is the cost."""
    del conf


if __name__ == "__main__":
    ConfigStore.instance().store(name="job_schema", node=JobConf)
    main()
