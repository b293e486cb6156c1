"""benchmarks/gpu_memory.py: its matrix, its arithmetic, and a configuration run to its end on the CPU."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from benchmarks import gpu_memory
from benchmarks.gpu_memory import Case, Results, Row, Sizes, cases, make_job, percent_off, planned
from launcher.host import Host
from launcher.models import model_shape
from launcher.units import GIB
from tests.planner_jobs import card
from tests.tiny import make_alpaca_file


def host_with(gpu: str | None) -> Host:
    return Host(
        hostname="node1",
        num_gpus=1 if gpu else 0,
        gpu=card(gpu) if gpu else None,
        gpu_names=(gpu,) if gpu else (),
        gpu_driver="575.1" if gpu else None,
        gpu_problem=None if gpu else "NVML Shared Library Not Found",
        num_cores=8,
        ram_total_bytes=64 * GIB,
        ram_available_bytes=64 * GIB,
    )


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_matrix_has_every_method_over_every_sharding(device: str) -> None:
    found = list(cases(device))
    names = [case.name for case in found]
    assert len(names) == len(set(names))
    for model in gpu_memory.MODELS[device]:
        for method in ("full", "lora", "qlora"):
            assert f"{model}-{method}-none-x1" in names
            for shard in ("ddp", "fsdp", "zero2", "zero3"):
                assert {f"{model}-{method}-{shard}-x{ranks}" for ranks in (2, 8)} <= set(names)
        assert sum(name.startswith(model) for name in names) >= 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job is made from: a shape and rows."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_bytes(msgspec.json.encode(gpu_memory.TINY | {"max_position_embeddings": 4096}))
    make_alpaca_file(folder / "rows.json", 8)
    return folder


@pytest.mark.parametrize("case", list(cases("cuda")), ids=lambda case: case.name)
def test_every_configuration_is_a_job_on_a_gpu(case: Case, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", liger_kernel())
    spec = make_job(case, "cuda", model, host_with("h200"))
    assert spec.device.name == "h200"
    assert spec.world_size == int(case.words[2].removeprefix("gpus="))
    assert model_shape(spec.model.config).num_layers == 2
    assert planned(spec).allocated_bytes


def liger_kernel() -> ModuleType:
    """An installed package, as far as a rule looks."""
    module = ModuleType("liger_kernel")
    module.__spec__ = ModuleSpec("liger_kernel", None)
    return module


def test_what_a_fake_process_group_lacks_is_not_compared(model: Path) -> None:
    alone, eight = (
        make_job(case, "cuda", model, host_with("h200"))
        for case in cases("cuda")
        if case.name in ("llama3.2-1b-lora-none-x1", "llama3.2-1b-lora-ddp-x8")
    )
    outside = [(planned(spec).process_bytes or 0) - (planned(spec).reserved_bytes or 0) for spec in (alone, eight)]
    assert outside[0] == outside[1]  # the context alone


def test_errors_are_signed_and_in_percent_of_what_was_measured() -> None:
    measured = Sizes(allocated_bytes=200, reserved_bytes=None, process_bytes=400)
    predicted = Sizes(allocated_bytes=210, reserved_bytes=5, process_bytes=300)
    assert percent_off(predicted, measured, "allocated") == 5.0
    assert percent_off(predicted, measured, "process") == -25.0
    assert percent_off(predicted, measured, "reserved") is None
    assert percent_off(None, measured, "allocated") is None


def test_results_are_read_as_they_were_written() -> None:
    row = Row(
        case=Case(name="a", model="tiny", words=("gpus=1",)), measured=None, by_phase={}, planned=None, traced=None,
        wall_s=1.0, problem="ended with 1",
    )  # fmt: skip
    results = Results(device="cpu", driver=None, host="h", measured_at="now", versions={}, rows=(row,))
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match=r"this host has no GPU .NVML Shared Library Not Found."):
        gpu_memory.device_of("cuda", host_with(None))


@pytest.mark.distributed
@pytest.mark.timeout(400)
def test_every_sharding_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    code = gpu_memory.main(
        ["--device", "cpu", "--cases", "tiny-lora-*-x2", "--models", str(tmp_path / "m"), "--output", str(output)]
    )
    assert code == 0
    rows = msgspec.json.decode(output.read_bytes(), type=Results).rows
    assert [row.case.name for row in rows] == [f"tiny-lora-{shard}-x2" for shard in ("ddp", "fsdp", "zero2", "zero3")]
    for row in rows:
        assert row.problem == ""
        assert row.measured is not None
        assert row.measured.allocated_bytes
        assert row.measured.process_bytes
        assert {"load", "wrap", "forward", "loss", "backward", "optimizer"} <= set(row.by_phase)
        assert row.planned is not None
