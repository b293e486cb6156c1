"""The cluster that all tests of a process share. Each test gets it whole, and leaves nothing running on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from slurm.bed import Bed, BedError, BedSettings
from slurm.bed.needs import require_what_it_needs
from tests.slurm.harness import assert_gone, heal, left_running


@pytest.fixture(scope="session")
def bed_is_possible() -> None:
    """Skip where a bed cannot be; in CI that is a failure."""
    try:
        require_what_it_needs()
    except BedError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def standing_bed(bed_is_possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Three nodes, whose own names are 127.0.1.1 to them as on Debian; they end with the tests, however those end."""
    settings = BedSettings(num_nodes=3, loopback_hostname=True)
    bed = Bed(tmp_path_factory.mktemp("cluster") / "bed", settings, tied=True)
    bed.up()
    try:
        yield bed
    finally:
        with bed.hold_namespaces() as namespaces:
            bed.down()
            assert_gone(bed, namespaces)


@pytest.fixture
def bed(standing_bed: Bed) -> Iterator[Bed]:
    """The bed with every node idle; when the test ends its faults are mended, and no job or process may be left."""
    yield standing_bed
    left = left_running(standing_bed)
    heal(standing_bed)
    assert left == []
