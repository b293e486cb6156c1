"""What is traced: the rank, and the device it is to have."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.precision import is_deepspeed
from launcher.spec import DeviceSpec, JobSpec

# Of an unnamed GPU: what most cards of today have at least. It decides kernels and workspaces, not tensors.
UNKNOWN_CAPABILITY = (9, 0)
UNKNOWN_MEMORY_BYTES = 80 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One rank of a job, and its device."""

    spec: JobSpec
    rank: int

    @property
    def device(self) -> DeviceSpec:
        return self.spec.device

    @property
    def device_type(self) -> str:
        """'cuda' or 'cpu'."""
        return self.device.kind

    @property
    def on_cuda(self) -> bool:
        return self.device.kind == "cuda"

    @property
    def world_size(self) -> int:
        return self.spec.world_size

    @property
    def local_rank(self) -> int:
        """The number of the rank's device on its node. Under DeepSpeed every traced rank takes the first one.

        DeepSpeed moves tensors to "cuda", the current device, and without a driver that is always the first.
        """
        return 0 if self.on_cuda and is_deepspeed(self.spec.shard.kind) else self.rank % self.spec.gpus_per_node

    @property
    def capability(self) -> tuple[int, int]:
        return self.device.compute_capability or UNKNOWN_CAPABILITY

    @property
    def memory_bytes(self) -> int:
        """DeepSpeed asks how much is free, and acts on it."""
        return self.device.memory_bytes or UNKNOWN_MEMORY_BYTES
