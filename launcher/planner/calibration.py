"""Calibrations: what was measured on hosts of the user's own, as files, and as entries before those of the table.

They lie in FITLAUNCH_CALIBRATION (a folder that the hosts of a cluster share), else in XDG_DATA_HOME/fitlaunch: one
file for each card, driver and set of versions, and one for each host's CPU process.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import InputError, Problem
from launcher.planner.constants import Basis, Constant, Constants, Entry, Key, When, card_family, listed_constants
from launcher.spec import ShardKind

VARIABLE = "FITLAUNCH_CALIBRATION"
SAME_CARD, SAME_VERSIONS = 1, 2
CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """One measured amount. num_ranks: of the node it was measured with; shard: of the job, where it matters."""

    key: Key
    amount: int
    num_ranks: int | None = None
    shard: ShardKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one command measured on one host. card: the listed name, else the driver's, else 'cpu'.

    readings: everything that was read, so that the amounts can be worked out again.
    """

    card: str
    host: str
    driver: str
    versions: dict[str, str]
    measured_at: str
    command: str
    amounts: tuple[Amount, ...]
    readings: Any

    @property
    def source(self) -> str:
        """Where, when, by which command and with what."""
        names = ("torch", "cuda", "nccl", "deepspeed")
        found = [f"{name} {self.versions[name]}" for name in names if self.versions.get(name)]
        driver = [f"driver {self.driver}"] if self.driver else []
        return f"{self.command} on {self.host}, {self.measured_at}, {', '.join([*driver, *found])}"

    @property
    def file_name(self) -> str:
        """The same for the same card, driver and versions, so that measuring again replaces."""
        versions = [self.versions.get(name, "") for name in ("torch", "nccl")]
        parts = [self.card, self.host if self.card == CPU else self.driver, *versions]
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", "_".join(part for part in parts if part)) + ".json"


def calibration_dir(env: Mapping[str, str]) -> Path:
    """Where calibrations are kept."""
    if env.get(VARIABLE):
        return Path(env[VARIABLE]).expanduser().absolute()
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else Path(env.get("HOME", "/")) / ".local" / "share") / "fitlaunch" / "calibrations"


def read_calibrations(folder: Path) -> tuple[Calibration, ...]:
    """Every calibration in a folder, the oldest first; none where there is no folder.

    Raises InputError that names a file which cannot be read.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Calibration))
        except (OSError, msgspec.DecodeError) as error:
            rule = f"is no calibration that can be read: {error}"
            raise InputError([Problem(field=VARIABLE, value=path, rule=rule, way_out="remove it")]) from error
    return tuple(sorted(found, key=lambda calibration: calibration.measured_at))


def calibrated(calibrations: Iterable[Calibration], versions: Mapping[str, str]) -> Constants:
    """The table with calibrations before it: those with the versions that are installed first, then any of the card."""
    found: defaultdict[Key, list[Entry]] = defaultdict(list)
    for calibration in calibrations:
        same = all(calibration.versions.get(name) == version for name, version in versions.items())
        for amount in calibration.amounts:
            found[amount.key].append(_entry(calibration, amount, SAME_VERSIONS if same else SAME_CARD))
    return listed_constants().joined({key: tuple(entries) for key, entries in found.items()})


def _entry(calibration: Calibration, amount: Amount, priority: int) -> Entry:
    return Entry(
        constant=Constant(amount=amount.amount, basis=Basis.MEASURED, source=calibration.source),
        when=When(
            gpus=None if calibration.card == CPU else (card_family(calibration.card),),
            shards=None if amount.shard is None else (amount.shard,),
            num_ranks=amount.num_ranks,
        ),
        priority=priority,
    )


def load_constants(env: Mapping[str, str]) -> Constants:
    """The constants for this environment. The installed versions are looked up only where something was calibrated."""
    calibrations = read_calibrations(calibration_dir(env))
    return calibrated(calibrations, installed_versions()) if calibrations else listed_constants()


def installed_versions() -> dict[str, str]:
    """The versions a calibration must have been made with to count before others."""
    from importlib.metadata import PackageNotFoundError, version  # 20 ms, and only after a calibration

    try:
        return {"torch": version("torch")}
    except PackageNotFoundError:
        return {}
