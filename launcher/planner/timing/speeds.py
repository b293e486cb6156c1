"""What cards, links and hosts can do: the constants of the time estimate, each with where it comes from.

Arithmetic is the vendor's dense figure (no sparsity) for half-precision products accumulated in fp32, which on
GeForce cards is half of the one on the box, and for fp32 without TF32. Links are in one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planner.constants import Basis
from launcher.spec import DeviceSpec, Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A number with its provenance; what it counts is said where it is used."""

    value: float
    basis: Basis
    source: str

    @property
    def provenance(self) -> str:
        """Basis and source in one line."""
        return f"{self.basis}: {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Peak rates of one device: operations a second, and bytes a second between two cards of a node and to host RAM."""

    half_flops: float
    single_flops: float
    link: float
    host: float
    source: str

    def flops(self, compute: Dtype) -> float:
        """Peak operations a second in a compute dtype."""
        return self.single_flops if compute is Dtype.FLOAT32 else self.half_flops


TERA, GIGA = 1e12, 1e9
# One direction, 16 lanes; ml-engineering network/README, tables PCIe and NVLink.
PCIE3, PCIE4, PCIE4_X8, PCIE5 = 15.75 * GIGA, 31 * GIGA, 15.75 * GIGA, 63 * GIGA
NVLINK2, NVLINK3, NVLINK4, NVLINK5 = 150 * GIGA, 300 * GIGA, 450 * GIGA, 900 * GIGA
NVLINK_EXPORT = 200 * GIGA  # A800 and H800: 400 GB/s in both directions together

AMPERE_GEFORCE = "NVIDIA Ampere GA102 whitepaper v2.1, appendix A; PCIe 4.0"
ADA_GEFORCE = "NVIDIA Ada GPU architecture whitepaper v2.1, appendix A; PCIe 4.0"


def _speeds(half: float, single: float, link: float, host: float, source: str) -> Speeds:
    return Speeds(half_flops=half * TERA, single_flops=single * TERA, link=link, host=host, source=source)


CARDS: dict[str, Speeds] = {
    "t4": _speeds(65, 8.1, PCIE3, PCIE3, "NVIDIA T4 datasheet"),
    "v100-16g": _speeds(125, 15.7, NVLINK2, PCIE3, "NVIDIA V100 SXM2 datasheet"),
    "v100-32g": _speeds(125, 15.7, NVLINK2, PCIE3, "NVIDIA V100 SXM2 datasheet"),
    "a10": _speeds(125, 31.2, PCIE4, PCIE4, "NVIDIA A10 datasheet"),
    "a100-40g": _speeds(312, 19.5, NVLINK3, PCIE4, "NVIDIA A100 datasheet"),
    "a100-80g": _speeds(312, 19.5, NVLINK3, PCIE4, "NVIDIA A100 datasheet"),
    "a800": _speeds(312, 19.5, NVLINK_EXPORT, PCIE4, "NVIDIA A800 datasheet"),
    "a6000": _speeds(154.8, 38.7, PCIE4, PCIE4, "NVIDIA RTX A6000 datasheet; no NVLink bridge assumed"),
    "l4": _speeds(121, 30.3, PCIE4, PCIE4, "NVIDIA L4 datasheet, half of the figures with sparsity"),
    "l20": _speeds(119.5, 59.8, PCIE4, PCIE4, "NVIDIA L20 datasheet"),
    "l40s": _speeds(362, 91.6, PCIE4, PCIE4, "NVIDIA L40S datasheet"),
    "h20": _speeds(148, 44, NVLINK4, PCIE5, "NVIDIA H20 datasheet"),
    "h800": _speeds(989, 67, NVLINK_EXPORT, PCIE5, "NVIDIA H800 datasheet"),
    "h100-80g": _speeds(989, 67, NVLINK4, PCIE5, "NVIDIA H100 SXM datasheet, half of the figures with sparsity"),
    "h200": _speeds(989, 67, NVLINK4, PCIE5, "NVIDIA H200 SXM datasheet, half of the figures with sparsity"),
    "b200": _speeds(2250, 80, NVLINK5, PCIE5, "NVIDIA B200 SXM datasheet, half of the figures with sparsity"),
    "rtx3060-12g": _speeds(25.5, 12.7, PCIE4, PCIE4, f"{AMPERE_GEFORCE}: 112 tensor cores at 1.78 GHz"),
    "rtx3080-10g": _speeds(59.5, 29.8, PCIE4, PCIE4, AMPERE_GEFORCE),
    "rtx3090": _speeds(71, 35.6, PCIE4, PCIE4, AMPERE_GEFORCE),
    "rtx4060-8g": _speeds(30.2, 15.1, PCIE4_X8, PCIE4_X8, f"{ADA_GEFORCE}: 96 tensor cores at 2.46 GHz, 8 lanes"),
    "rtx4070-12g": _speeds(58.3, 29.1, PCIE4, PCIE4, f"{ADA_GEFORCE}: 184 tensor cores at 2.48 GHz"),
    "rtx4090": _speeds(165.2, 82.6, PCIE4, PCIE4, ADA_GEFORCE),
    "rtx4090d": _speeds(147.1, 73.5, PCIE4, PCIE4, f"{ADA_GEFORCE}: 456 tensor cores at 2.52 GHz"),
    "rtx5090": _speeds(209.5, 104.8, PCIE5, PCIE5, "NVIDIA RTX Blackwell GPU architecture whitepaper v1.1, appendix A"),
}
# A card that is not listed: only ratios matter, and those of the A100 are the middle of the table.
UNLISTED = _speeds(312, 19.5, PCIE4, PCIE4, "assumed: an A100's arithmetic on PCIe 4.0")
CPU_RANK = Speeds(
    half_flops=50 * GIGA,
    single_flops=100 * GIGA,
    link=5 * GIGA,
    host=5 * GIGA,
    source="assumed: one or two cores with AVX2, gloo on the loopback",
)
UNLISTED_MEMORY, CPU_MEMORY = 1500 * GIGA, 10 * GIGA

# Published training runs reach 38 to 43 % of an H100's peak in model operations (Llama 3, arXiv:2407.21783, table 4)
# and, counting recomputation, 42 to 57 % of an A100's (Korthikanti et al., arXiv:2205.05198, table 5).
COMPUTE_SHARE = Rate(value=0.45, basis=Basis.PUBLISHED, source="arXiv:2407.21783 table 4; arXiv:2205.05198 table 5")
LINK_SHARE = Rate(
    value=0.8,
    basis=Basis.PUBLISHED,
    source="235 of 300 GB/s in an all-reduce on 8xA100: ml-engineering network/README",
)
MEMORY_SHARE = Rate(value=0.8, basis=Basis.ASSUMED, source="what streaming kernels usually reach")
# Between nodes, for each GPU: one 400 Gb/s port to every card that has NVLink, one 100 Gb/s port to others.
NETWORK_WITH_NVLINK = Rate(value=50 * GIGA, basis=Basis.ASSUMED, source="a 400 Gb/s port for each GPU")
NETWORK = Rate(value=12.5 * GIGA / 8, basis=Basis.ASSUMED, source="a 100 Gb/s port for each node of eight GPUs")
CPU_ADAM = Rate(
    value=1e9 / 0.22,
    basis=Basis.PUBLISHED,
    source="ZeRO-Offload, arXiv:2101.06840, table 4: CPU-Adam steps 1e9 parameters in 0.22 s; shared by a node's ranks",
)
# Short passes wait for Python, not for the GPU.
LAUNCH = Rate(
    value=1.2 / (8 * 32 * 4),
    basis=Basis.PUBLISHED,
    source="github.com/QwenLM/Qwen README, Profiling: Qwen-7B, LoRA with checkpointing, 256 tokens: 1.2 s for 8 passes "
    "of 32 layers, each run four times (forward, recomputation, and a backward pass of two)",
)


def speeds_of(device: DeviceSpec) -> Speeds:
    """The speeds of a device; those of an A100 on PCIe where it is not in the table."""
    if device.kind == "cpu":
        return CPU_RANK
    return CARDS.get(device.name, UNLISTED)


def memory_rate(device: DeviceSpec) -> float:
    """Bytes a second that streaming kernels get from the device's memory."""
    if device.kind == "cpu":
        return CPU_MEMORY
    return (device.memory_bandwidth_bytes_per_s or UNLISTED_MEMORY) * MEMORY_SHARE.value


def has_nvlink(speeds: Speeds) -> bool:
    """Whether cards of a node are linked faster than their host."""
    return speeds.link > speeds.host
