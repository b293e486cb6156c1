"""Calibrations: from readings to amounts, kept as files, and taken before the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.calibrate import COLLECTIVES, CpuProbe, read_context
from jobs.synthetic import make_rows, make_tokenizer
from launcher.calibrating import amounts as stages
from launcher.calibrating.amounts import by_collective, context_amounts, cpu_amounts, nccl_amounts
from launcher.calibrating.gpu import calibrate_gpus, counts_of_ranks, make_calibration
from launcher.errors import InputError
from launcher.host import Host
from launcher.planner.calibration import (
    Amount,
    Calibration,
    calibrated,
    calibration_dir,
    load_constants,
    read_calibrations,
)
from launcher.planner.constants import Basis, Key, listed_constants
from launcher.readings import ContextReadings, NcclReadings, Place, Reading
from launcher.runs.records import RankMeasurement, write_record
from launcher.spec import ShardKind
from launcher.units import MIB
from tests.planner_jobs import card

PLACE = Place(host="node1", gpu="NVIDIA H100 80GB HBM3", driver="575.1", versions={"torch": "2.13.0", "nccl": "2.29.7"})


def reading(stage: str, used: int, reserved: int = 0, allocated: int = 0) -> Reading:
    return Reading(stage=stage, used_bytes=used * MIB, reserved_bytes=reserved * MIB, allocated_bytes=allocated * MIB)


CONTEXT = ContextReadings(
    place=PLACE,
    readings=(
        reading("nothing", 0),
        reading("context", 402, 2, 1),
        reading("matmul", 440, 36, 33),
        reading("kernels", 540, 40, 32),
    ),
)


def nccl_readings(num_ranks: int) -> NcclReadings:
    """The first communicator adds 500 + 10 a rank MiB, the second 300 + 10 a rank; each collective has its share."""
    first = (
        reading("kernels", 500, 40),
        reading("first communicator: small all-reduce", 900, 40),
        reading("first communicator: all-reduce", 1000, 40),
    )
    ranks = []
    for rank in range(num_ranks):
        last = reading("second communicator: all-reduce", 1300 + 10 * rank, 40)
        ranks.append((*first, last))
    return NcclReadings(place=PLACE, ranks=tuple(ranks))


def test_context_is_what_is_not_reserved_and_the_workspace_what_the_product_allocated() -> None:
    assert context_amounts(CONTEXT) == (
        Amount(key=Key.CUDA_CONTEXT, amount=500 * MIB),
        Amount(key=Key.CUBLAS_WORKSPACE, amount=32 * MIB),
    )


def test_a_communicator_is_what_the_second_one_adds() -> None:
    assert nccl_amounts(nccl_readings(3)) == (
        Amount(key=Key.NCCL_COMMUNICATORS, amount=320 * MIB, num_ranks=3),
        Amount(key=Key.NCCL_BASE, amount=180 * MIB, num_ranks=3),
    )


def test_what_each_collective_added() -> None:
    assert by_collective(nccl_readings(1).ranks[0]) == (
        ("first communicator: small all-reduce", 400 * MIB),
        ("first communicator: all-reduce", 100 * MIB),
        ("second communicator: all-reduce", 300 * MIB),
    )


def measured(rss: int, allocated: int) -> RankMeasurement:
    return RankMeasurement(
        rank=0,
        host="node1",
        device="cpu",
        allocated_bytes=allocated * MIB,
        reserved_bytes=None,
        process_bytes=rss * MIB,
        rss_bytes=rss * MIB,
        by_phase={},
    )


def test_a_cpu_process_is_what_the_line_leaves() -> None:
    light = {ShardKind.DDP: (measured(1000, 200), measured(990, 210)), ShardKind.ZERO2: (measured(1100, 300),)}
    heavy = {ShardKind.DDP: (measured(2500, 1200),), ShardKind.ZERO2: (measured(2600, 1300),)}
    assert cpu_amounts(light, heavy) == (
        Amount(key=Key.CPU_PROCESS, amount=700 * MIB, shard=ShardKind.DDP),
        Amount(key=Key.CPU_PROCESS, amount=650 * MIB, shard=ShardKind.ZERO2),
        Amount(key=Key.CPU_SLACK, amount=150),
    )


def test_ranks_are_measured_in_powers_of_two_up_to_all() -> None:
    assert [counts_of_ranks(num_gpus) for num_gpus in (1, 2, 3, 4, 8)] == [(), (2,), (2, 3), (2, 4), (2, 4, 8)]


def host_with(num_gpus: int) -> Host:
    return Host(
        hostname="node1",
        num_gpus=num_gpus,
        gpu=card("h100-80g") if num_gpus else None,
        gpu_names=("h100-80g",) * num_gpus,
        gpu_driver="575.1" if num_gpus else None,
        gpu_problem=None if num_gpus else "NVML Shared Library Not Found",
        num_cores=8,
        ram_total_bytes=1,
        ram_available_bytes=1,
    )


def test_gpus_are_measured_one_process_and_then_one_torchrun_a_count() -> None:
    commands: list[tuple[str, ...]] = []

    def read(argv: tuple[str, ...], output: Path, kind: type[Any]) -> Any:
        commands.append(argv[1:-1])
        found = CONTEXT if kind is ContextReadings else nccl_readings(int(argv[4].rpartition("=")[2]))
        assert isinstance(found, kind)
        return found

    found = calibrate_gpus(host_with(4), lambda _: None, read)
    torchrun = ("-m", "torch.distributed.run", "--standalone")
    assert commands == [
        ("-m", "jobs.calibrate", "context"),
        (*torchrun, "--nproc-per-node=2", "-m", "jobs.calibrate", "nccl"),
        (*torchrun, "--nproc-per-node=4", "-m", "jobs.calibrate", "nccl"),
    ]
    assert (found.card, found.driver) == ("h100-80g", "575.1")
    assert [(a.key, a.num_ranks) for a in found.amounts] == [
        (Key.CUDA_CONTEXT, None),
        (Key.CUBLAS_WORKSPACE, None),
        (Key.NCCL_COMMUNICATORS, 2),
        (Key.NCCL_BASE, 2),
        (Key.NCCL_COMMUNICATORS, 4),
        (Key.NCCL_BASE, 4),
    ]
    assert found.readings["context"]["readings"][3]["used_bytes"] == 540 * MIB


def test_without_a_gpu_nothing_is_measured() -> None:
    with pytest.raises(InputError, match=r"has no GPU that can be measured .NVML Shared Library Not Found.: run it on"):
        calibrate_gpus(host_with(0), lambda _: None)


def calibration(*amounts: Amount, at: str = "2026-11-01", torch_version: str = "2.13.0") -> Calibration:
    made = make_calibration("h100-80g", PLACE, amounts, None, "fitlaunch calibrate")
    return dataclasses.replace(made, measured_at=at, versions={"torch": torch_version})


def test_the_newest_calibration_with_the_installed_versions_counts_first() -> None:
    h100 = card("h100-80g")
    made = ((1, "2026-11-01", "2.13.0"), (2, "2026-11-02", "2.13.0"), (3, "2026-11-03", "2.12.0"))
    old, new, other = (
        calibration(Amount(key=Key.CUDA_CONTEXT, amount=amount), at=at, torch_version=version)
        for amount, at, version in made
    )

    def context(*found: Calibration, versions: str = "2.13.0") -> int:
        return calibrated(found, {"torch": versions}).get(Key.CUDA_CONTEXT, h100).amount

    assert context(old, new, other) == 2
    assert context(old, new, other, versions="2.12.0") == 3
    assert context(other) == 3  # of another version, but of this card: better than the table
    assert context() == listed_constants().get(Key.CUDA_CONTEXT, h100).amount
    assert calibrated((old,), {}).get(Key.CUDA_CONTEXT, card("t4")).basis is Basis.PUBLISHED


def test_a_calibration_says_where_when_and_how() -> None:
    constants = calibrated((calibration(Amount(key=Key.CUDA_CONTEXT, amount=1)),), {})
    found = constants.get(Key.CUDA_CONTEXT, card("h100-80g"))
    assert found.provenance == "measured: fitlaunch calibrate on node1, 2026-11-01, driver 575.1, torch 2.13.0"


def test_calibrations_are_kept_one_file_a_card_driver_and_versions(tmp_path: Path) -> None:
    env = {"FITLAUNCH_CALIBRATION": str(tmp_path / "shared")}
    kept = calibration(Amount(key=Key.NCCL_COMMUNICATORS, amount=5, num_ranks=8))
    assert kept.file_name == "h100-80g_575.1_2.13.0.json"
    write_record(calibration_dir(env) / kept.file_name, kept)
    assert read_calibrations(calibration_dir(env)) == (kept,)
    assert load_constants(env).find(Key.NCCL_COMMUNICATORS, card("h100-80g"), num_ranks=8).amount == 5  # type: ignore[union-attr]


def test_where_calibrations_are_kept(tmp_path: Path) -> None:
    assert calibration_dir({"XDG_DATA_HOME": "/data"}) == Path("/data/fitlaunch/calibrations")
    assert calibration_dir({"HOME": "/home/me"}) == Path("/home/me/.local/share/fitlaunch/calibrations")
    assert load_constants({"XDG_DATA_HOME": str(tmp_path)}) is listed_constants()


def test_a_broken_calibration_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"card": "h100')
    with pytest.raises(InputError, match=r"torn\.json is no calibration that can be read: .*: remove it"):
        read_calibrations(tmp_path)


def test_the_steps_of_a_context_run_on_a_cpu() -> None:
    found = read_context(CpuProbe())
    assert [r.stage for r in found.readings] == ["nothing", stages.CONTEXT, stages.MATMUL, stages.KERNELS]
    assert found.place.versions["torch"] == torch.__version__
    assert found.readings[-1].used_bytes >= found.readings[0].used_bytes > 0


def test_every_collective_of_a_job_is_measured() -> None:
    assert list(COLLECTIVES) == ["small all-reduce", "all-reduce", "all-gather", "reduce-scatter", "broadcast"]


def test_synthetic_rows_can_be_encoded() -> None:
    rows = make_rows()
    tokenizer = make_tokenizer(rows)
    assert len(tokenizer) <= 300
    assert tokenizer.decode(tokenizer.encode(rows[0]["output"])) == rows[0]["output"]
