"""Reads off a device what no formula gives; started by `fitlaunch calibrate`, which turns it into constants.

    python -m jobs.calibrate context OUTPUT                       CUDA context with its kernels, cuBLAS workspace
    torchrun --nproc-per-node N -m jobs.calibrate nccl OUTPUT     NCCL by communicator and collective, N ranks of a node

OUTPUT becomes one JSON document. With --device cpu the same steps run on a CPU, over gloo, and the resident set stands
in for the device: that measures nothing of use, and shows that the steps work.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn import functional

from jobs.versions import installed_versions
from launcher.readings import ContextReadings, NcclReadings, Place, Reading
from launcher.runs.records import write_record
from launcher.units import MIB

NOTHING, CONTEXT, MATMUL, KERNELS = "nothing", "context", "matmul", "kernels"
FIRST, SECOND = "first communicator", "second communicator"
LARGE_BYTES = 64 * MIB  # large enough that every algorithm and protocol a training job meets is chosen for it


class Probe(Protocol):
    """Looks at the memory of one device."""

    device: torch.device

    def read(self, stage: str) -> Reading: ...

    def place(self) -> Place: ...


class CudaProbe:
    """Asks the driver for this process and torch for its allocator.

    Where this process's id is not the driver's (in a container), the whole device is read instead, less what others
    held at the start: nothing else may then use it meanwhile.
    """

    def __init__(self, index: int) -> None:
        import pynvml

        self._nvml: Any = pynvml
        self.device = torch.device("cuda", index)
        self._nvml.nvmlInit()
        # By PCI bus as NVML counts, whatever CUDA_VISIBLE_DEVICES has hidden.
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        self._others_bytes = self._device_bytes()

    def read(self, stage: str) -> Reading:
        """One look, once all that was asked of the device is done."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(self.device)
        own = self._process_bytes()
        return Reading(
            stage=stage,
            used_bytes=self._device_bytes() - self._others_bytes if own is None else own,
            reserved_bytes=torch.cuda.memory_reserved(self.device) if torch.cuda.is_initialized() else 0,
            allocated_bytes=torch.cuda.memory_allocated(self.device) if torch.cuda.is_initialized() else 0,
        )

    def place(self) -> Place:
        """The card, its driver, and the libraries that use it."""
        nccl = ".".join(str(part) for part in torch.cuda.nccl.version())
        return Place(
            host=socket.gethostname(),
            gpu=str(self._nvml.nvmlDeviceGetName(self._handle)),
            driver=str(self._nvml.nvmlSystemGetDriverVersion()),
            versions=installed_versions() | {"cuda": torch.version.cuda or "", "nccl": nccl},
        )

    def _device_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _process_bytes(self) -> int | None:
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return int(process.usedGpuMemory)
        return None


class CpuProbe:
    """The resident set in the place of a device."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def read(self, stage: str) -> Reading:
        """One look at this process."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Reading(stage=stage, used_bytes=pages * os.sysconf("SC_PAGE_SIZE"), reserved_bytes=0, allocated_bytes=0)

    def place(self) -> Place:
        """This host."""
        return Place(host=socket.gethostname(), gpu="", driver="", versions=installed_versions())


def read_context(probe: Probe) -> ContextReadings:
    """From nothing to the kernels of a training step; each reading includes what came before it."""
    readings = [probe.read(NOTHING)]
    left, right = (torch.ones(256, 256, device=probe.device, dtype=half(probe.device)) for _ in range(2))
    product = torch.empty_like(left)
    readings.append(probe.read(CONTEXT))
    torch.mm(left, right, out=product)  # into what is there: all that is allocated now is the workspace
    readings.append(probe.read(MATMUL))
    del left, right, product
    use_kernels(probe.device)
    readings.append(probe.read(KERNELS))
    return ContextReadings(place=probe.place(), readings=tuple(readings))


def half(device: torch.device) -> torch.dtype:
    """The half precision that a job would use there: bf16 came with Ampere."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


def use_kernels(device: torch.device) -> None:
    """One step of a small transformer block, in both dtypes of mixed precision: the kernels that a job will load."""
    for dtype in (half(device), torch.float32):
        embedding = torch.nn.Embedding(512, 128, device=device, dtype=dtype)
        linear = torch.nn.Linear(128, 512, device=device, dtype=dtype)
        ids = torch.randint(0, 512, (2, 64), device=device)
        hidden = embedding(ids)
        heads = hidden.view(2, 64, 2, 64).transpose(1, 2)
        hidden = (
            functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
            .transpose(1, 2)
            .reshape(2, 64, 128)
        )
        normed = hidden * torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + 1e-5).to(dtype)
        logits = linear(functional.silu(normed)).float()
        functional.cross_entropy(logits.view(-1, 512), ids.view(-1)).backward()
        parameters = [*embedding.parameters(), *linear.parameters()]
        optimizer = torch.optim.AdamW(parameters, fused=True)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def read_nccl(probe: Probe) -> NcclReadings:
    """Every collective that a job uses, on the world's communicator, and then on a second one."""
    dist.init_process_group("nccl" if probe.device.type == "cuda" else "gloo")
    use_kernels(probe.device)
    readings = [probe.read(KERNELS)]
    for name, group in ((FIRST, None), (SECOND, dist.new_group(list(range(dist.get_world_size()))))):
        for collective, run in COLLECTIVES.items():
            run(probe.device, group)
            readings.append(probe.read(f"{name}: {collective}"))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, [reading_of(reading) for reading in readings])
    ranks = tuple(tuple(Reading(**reading) for reading in rank) for rank in gathered)
    return NcclReadings(place=probe.place(), ranks=ranks)


def reading_of(reading: Reading) -> dict[str, Any]:
    """A reading as plain data."""
    return {name: getattr(reading, name) for name in ("stage", "used_bytes", "reserved_bytes", "allocated_bytes")}


def _small_all_reduce(device: torch.device, group: Any) -> None:
    dist.all_reduce(torch.ones(4, device=device), group=group)


def _all_reduce(device: torch.device, group: Any) -> None:
    dist.all_reduce(torch.ones(LARGE_BYTES // 4, device=device), group=group)


def _all_gather(device: torch.device, group: Any) -> None:
    part = torch.ones(LARGE_BYTES // 4 // dist.get_world_size(), device=device)
    whole = torch.empty(part.numel() * dist.get_world_size(), device=device)
    dist.all_gather_single(whole, part, group=group)


def _reduce_scatter(device: torch.device, group: Any) -> None:
    part = torch.empty(LARGE_BYTES // 4 // dist.get_world_size(), device=device)
    whole = torch.ones(part.numel() * dist.get_world_size(), device=device)
    dist.reduce_scatter_single(part, whole, group=group)


def _broadcast(device: torch.device, group: Any) -> None:
    dist.broadcast(torch.ones(LARGE_BYTES // 4, device=device), src=0, group=group)


COLLECTIVES: dict[str, Callable[[torch.device, Any], None]] = {
    "small all-reduce": _small_all_reduce,
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "broadcast": _broadcast,
}


def main(arguments: list[str] | None = None) -> int:
    """Read one thing, and write it down."""
    parser = argparse.ArgumentParser(prog="python -m jobs.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("context", "nccl"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if options.device == "cuda":
        os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
        torch.cuda.set_device(index)
    probe: Probe = CudaProbe(index) if options.device == "cuda" else CpuProbe()
    if options.what == "context":
        write_record(options.output, read_context(probe))
        return 0
    found = read_nccl(probe)
    if dist.get_rank() == 0:
        write_record(options.output, found)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
