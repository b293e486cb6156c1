"""The time of one optimizer step: its passes and what comes once, each part by itself."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planner.timing import speeds
from launcher.planner.timing.operations import dequantised_bytes, loss_bytes, operations, recomputed_share, step_bytes
from launcher.planner.timing.speeds import Speeds
from launcher.planner.timing.transfers import Transfers, transfers
from launcher.planner.workload import Workload
from launcher.spec import ShardKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A share of an optimizer step's time, where it comes from, and the source of the rate it is reckoned with."""

    name: str
    seconds: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """The estimated time of one optimizer step on one rank, and the tokens all ranks train in it."""

    parts: tuple[Part, ...]
    tokens: int

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(part.seconds for part in self.parts)

    @property
    def seconds_per_token(self) -> float:
        """For comparing jobs whose steps train different amounts."""
        return self.seconds / self.tokens


def step_time(work: Workload) -> StepTime:
    """The estimated time of one optimizer step. The micro batch is chosen; every rank takes the same time."""
    rates = speeds.speeds_of(work.spec.device)
    sent = transfers(work)
    once = (*_exchange_once(work, rates, sent), *_optimizer(work, rates, sent))
    passes = work.spec.gradient_accumulation
    every = tuple(
        Part(name=part.name, seconds=passes * part.seconds, source=part.source) for part in _one_pass(work, rates, sent)
    )
    tokens = work.tokens * passes * work.world_size
    return StepTime(parts=tuple(part for part in (*every, *once) if part.seconds > 0), tokens=tokens)


def compute_seconds(work: Workload) -> float:
    """The arithmetic of one pass, or the launching of its kernels where that takes longer."""
    rates = speeds.speeds_of(work.spec.device)
    arithmetic = operations(work).total / (rates.flops(work.dtypes.compute) * speeds.COMPUTE_SHARE.value)
    return max(arithmetic, _launch_seconds(work))


def _launch_seconds(work: Workload) -> float:
    """Python's time for the kernels of every layer: forward, backward twice as many, and recomputation."""
    if not work.on_cuda:
        return 0.0
    return (3 + recomputed_share(work)) * work.inventory.num_layers * speeds.LAUNCH.value


def _one_pass(work: Workload, rates: Speeds, sent: Transfers) -> tuple[Part, ...]:
    memory = speeds.memory_rate(work.spec.device)
    compute = compute_seconds(work)
    link = link_rate(work, rates)
    host = rates.host * speeds.LINK_SHARE.value
    fetched = sent.gathered / link + sent.pulled / host
    reduced = sent.reduced / link + sent.pushed / host
    hidden = compute if _overlaps(work) else 0.0
    return (
        Part(name="compute", seconds=compute, source=speeds.COMPUTE_SHARE.provenance),
        Part(
            name="dequantisation",
            seconds=dequantised_bytes(work) / memory,
            source=speeds.MEMORY_SHARE.provenance,
        ),
        Part(name="loss", seconds=loss_bytes(work) / memory, source=speeds.MEMORY_SHARE.provenance),
        Part(
            name="exchange in each pass",
            seconds=max(0.0, fetched + reduced - hidden),
            source=speeds.LINK_SHARE.provenance,
        ),
    )


def _overlaps(work: Workload) -> bool:
    """FSDP2 fetches ahead while it computes, and only what takes longer is waited for. DeepSpeed does so too, but short
    passes of it take about the sum (github.com/QwenLM/Qwen README, Profiling: the 72B model with LoRA and ZeRO-3)."""
    return work.spec.shard.kind is ShardKind.FSDP


def _exchange_once(work: Workload, rates: Speeds, sent: Transfers) -> tuple[Part, ...]:
    """DDP reduces while the last backward pass, two thirds of a pass, computes; ZeRO-2 gathers after the step."""
    seconds = sent.step_reduced / link_rate(work, rates)
    if work.spec.shard.kind is ShardKind.DDP:
        seconds = max(0.0, seconds - compute_seconds(work) * 2 / 3)
    return (Part(name="exchange in each step", seconds=seconds, source=speeds.LINK_SHARE.provenance),)


def _optimizer(work: Workload, rates: Speeds, sent: Transfers) -> tuple[Part, ...]:
    """The step itself, on the device or on the host that all ranks of a node share."""
    if sent.host_stepped:
        ranks = work.spec.gpus_per_node
        return (
            Part(
                name="optimizer on the host",
                seconds=ranks * sent.host_stepped / speeds.CPU_ADAM.value,
                source=speeds.CPU_ADAM.provenance,
            ),
            Part(
                name="weights back from the host",
                seconds=sent.step_pulled / (rates.host * speeds.LINK_SHARE.value),
                source=speeds.LINK_SHARE.provenance,
            ),
        )
    numel = work.inventory.trained_numel / (1 if work.spec.shard.kind is ShardKind.DDP else work.world_size)
    seconds = step_bytes(work, numel) / speeds.memory_rate(work.spec.device)
    return (Part(name="optimizer", seconds=seconds, source=speeds.MEMORY_SHARE.provenance),)


def link_rate(work: Workload, rates: Speeds) -> float:
    """Bytes a second between ranks: the slowest link on the ring."""
    rate = rates.link * speeds.LINK_SHARE.value
    if work.spec.nodes == 1 or not work.on_cuda:
        return rate
    network = speeds.NETWORK_WITH_NVLINK if speeds.has_nvlink(rates) else speeds.NETWORK
    return min(rate, network.value)
