"""The host as the driver, the kernel and the control groups report it; NVML and the file systems are faked."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launcher.host import Host, cgroup, detect_host
from launcher.host.detect import usable_cores
from launcher.host.nvml import cards_now, visible_indices
from launcher.units import GIB, MIB


@dataclass(frozen=True)
class FakeGpu:
    name: str
    total_mib: int
    reserved_mib: int
    capability: tuple[int, int] = (8, 0)
    uuid: str = "GPU-0"
    used_mib: int = 0


T4 = FakeGpu("Tesla T4", 15360, 448, (7, 5), "GPU-aa11")
A100 = FakeGpu("NVIDIA A100-SXM4-80GB", 81920, 870, (8, 0), "GPU-aa22")
ODD = FakeGpu("NVIDIA Odd Card", 20480, 480, (8, 9), "GPU-bb33")


@dataclass
class FakeNvml:
    """Answers as pynvml does for these GPUs; with a failure, as where that is the state of the driver."""

    gpus: tuple[FakeGpu, ...] = ()
    failure: str | None = None
    fails_late: bool = False
    nvmlMemory_v2: int = 0x2000028  # noqa: N815 (NVML's name)
    is_open: bool = field(default=False, init=False)

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:  # noqa: N802
        if self.failure and not self.fails_late:
            raise self.NVMLError(self.failure)
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:  # noqa: N802
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:  # noqa: N802
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int) -> SimpleNamespace:  # noqa: N802
        assert version == self.nvmlMemory_v2
        if self.failure:
            raise self.NVMLError(self.failure)
        free_mib = gpu.total_mib - gpu.reserved_mib - gpu.used_mib
        return SimpleNamespace(total=gpu.total_mib * MIB, reserved=gpu.reserved_mib * MIB, free=free_mib * MIB)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:  # noqa: N802
        return gpu.capability


def host_with(*gpus: FakeGpu, visible: str | None = None) -> Host:
    nvml = FakeNvml(gpus)
    host = detect_host(env={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, nvml=nvml)
    assert not nvml.is_open
    return host


def test_listed_gpu_is_named_as_listed_and_has_its_own_memory() -> None:
    host = host_with(T4, T4)
    assert (host.num_gpus, host.gpu_names, host.gpu_driver, host.gpu_problem) == (2, ("t4", "t4"), "580.65.06", None)
    assert host.gpu is not None
    assert host.gpu.name == "t4"
    assert host.gpu.memory_bytes == 14_912 * MIB
    assert host.gpu.compute_capability == (7, 5)
    assert host.gpu.memory_bandwidth_bytes_per_s == 320 * 10**9
    assert host.gpu.source == "this host: Tesla T4, driver 580.65.06"


def test_unlisted_gpu_keeps_the_name_of_its_driver() -> None:
    gpu = host_with(ODD).gpu
    assert gpu is not None
    assert (gpu.name, gpu.memory_bytes) == ("NVIDIA Odd Card", 20_000 * MIB)
    assert (gpu.compute_capability, gpu.memory_bandwidth_bytes_per_s) == ((8, 9), None)


def test_of_mixed_gpus_the_smallest_stands_for_all() -> None:
    host = host_with(A100, T4, ODD)
    assert (host.num_gpus, host.gpu_names) == (3, ("a100-80g", "t4", "NVIDIA Odd Card"))
    assert host.gpu is not None
    assert host.gpu.name == "t4"


def test_hidden_gpus_do_not_count() -> None:
    host = host_with(A100, T4, visible="0")
    assert (host.num_gpus, host.gpu_names) == (1, ("a100-80g",))
    assert host_with(A100, visible="").num_gpus == 0


@pytest.mark.parametrize("fails_late", [False, True])
def test_a_driver_that_does_not_answer_means_no_gpus_and_says_why(fails_late: bool) -> None:
    nvml = FakeNvml((T4,), failure="Driver/library version mismatch", fails_late=fails_late)
    host = detect_host(env={}, nvml=nvml)
    assert (host.num_gpus, host.gpu, host.gpu_names, host.gpu_driver) == (0, None, (), None)
    assert host.gpu_problem == "Driver/library version mismatch"
    assert not nvml.is_open


def test_what_is_free_of_each_gpu_now() -> None:
    gpus = (A100, dataclasses.replace(T4, used_mib=912), ODD)
    a100, t4, odd = 81_050 * MIB, 14_000 * MIB, 20_000 * MIB
    assert free_now(FakeNvml(gpus)) == [("0", a100), ("1", t4), ("2", odd)]
    assert free_now(FakeNvml(gpus), "2,GPU-aa11") == [("2", odd), ("GPU-aa11", t4)]
    assert free_now(FakeNvml(gpus), "1,7,0") == [("1", t4)]
    assert free_now(FakeNvml(gpus, failure="gone", fails_late=True)) == []


def free_now(nvml: FakeNvml, visible: str | None = None) -> list[tuple[str, int]]:
    cards = cards_now({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, nvml)
    assert not nvml.is_open
    return [(card.name, card.free_bytes) for card in cards]


UUIDS = ("GPU-aa11", "GPU-aa22", "GPU-bb33")


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2,0", (2, 0)),
        (" 1 , 2 ", (1, 2)),
        ("0,3,1", (0,)),
        ("0,-1,1", (0,)),
        ("1,1,2", (1,)),
        ("GPU-bb,GPU-aa11", (2, 0)),
        ("GPU-aa", ()),
        ("GPU-cc", ()),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(visible: str | None, indices: tuple[int, ...]) -> None:
    assert visible_indices(UUIDS, visible) == indices


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup.memory_limit_bytes(tmp_path) is None
    assert cgroup.memory_left_bytes(tmp_path) is None
    assert cgroup.core_limit(tmp_path) is None


def test_cgroup_v2_takes_the_lowest_limit_on_the_way_up(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
            "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max\n",
            "sys/fs/cgroup/slurm/job_7/step_0/memory.current": "1000\n",
            "sys/fs/cgroup/slurm/job_7/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/slurm/job_7/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/slurm/job_7/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            "sys/fs/cgroup/slurm/memory.max": f"{64 * GIB}\n",
            "sys/fs/cgroup/slurm/memory.current": f"{60 * GIB}\n",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "350000 100000\n",
            "sys/fs/cgroup/slurm/cpu.max": "max 100000\n",
        },
    )
    assert cgroup.memory_limit_bytes(root) == 8 * GIB
    assert cgroup.memory_left_bytes(root) == 4 * GIB  # slurm's 64 - 60 is lower than the job's 8 - 3 + 1
    assert cgroup.core_limit(root) == 3


def test_cgroup_v1_is_read_by_controller_and_knows_no_limit(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n1:name=systemd:/docker/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "123\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/docker/x/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 2}\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cgroup.memory_limit_bytes(root) == 2 * GIB
    assert cgroup.memory_left_bytes(root) == GIB + GIB // 2
    assert cgroup.core_limit(root) == 1


def test_in_a_container_the_limit_stands_at_the_mount(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {"proc/self/cgroup": "0::/system.slice/far.scope\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"},
    )
    assert cgroup.memory_limit_bytes(root) == GIB


def test_host_counts_the_limits_in(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{64 * MIB}\n",
            "sys/fs/cgroup/memory.current": f"{24 * MIB}\n",
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        },
    )
    host = detect_host(env={}, nvml=FakeNvml(), root=root)
    assert (host.ram_total_bytes, host.ram_available_bytes, host.num_cores) == (64 * MIB, 40 * MIB, 1)


def test_host_without_limits_has_what_the_kernel_says(tmp_path: Path) -> None:
    host = detect_host(env={}, nvml=FakeNvml(), root=tmp_path)
    assert host.ram_total_bytes == psutil.virtual_memory().total
    assert 0 < host.ram_available_bytes <= host.ram_total_bytes
    assert host.num_cores == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("affinity", "quota", "cores"), [(8, None, 8), (8, 3, 3), (2, 16, 2)])
def test_usable_cores(affinity: int, quota: int | None, cores: int) -> None:
    assert usable_cores(affinity, quota) == cores


def test_this_host_answers() -> None:
    host = detect_host()
    assert host.num_cores >= 1
    assert (host.gpu is None) == (host.num_gpus == 0) == (host.gpu_driver is None)
