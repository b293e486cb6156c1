"""Plans, outcomes and run folders made by hand, with small exact numbers, for the tests of what people see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.planner.types import MemoryPlan, Phase, RankPlan, Suggestion, Term, TermKind, Verdict
from launcher.runs.diagnosis.read import diagnose_attempt
from launcher.runs.layout import RunFolder
from launcher.runs.outcome import Outcome
from launcher.runs.records import (
    EvalMetrics,
    Failed,
    Finished,
    NodeEnd,
    RankDeath,
    RankMeasurement,
    Started,
    Status,
    Stopped,
    TrainMetrics,
    append_record,
    write_record,
)
from launcher.shards import shard_defaults
from launcher.spec import DeviceSpec, JobSpec, LoraBias, MethodKind, MethodSpec, ShardKind
from launcher.units import GIB, KIB, MIB
from tests.specs import device_spec, job_spec

# 2 layers of 64: 8192 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 256 + 2 * 64) + 64 = 655,680 parameters
TINY_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
EVERY_PHASE = tuple(Phase)
STEP = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD)
LORA = MethodSpec(
    kind=MethodKind.LORA, rank=8, alpha=16.0, dropout=0.0, targets=("q_proj", "v_proj"), bias=LoraBias.NONE
)
RTX4090 = device_spec(
    "rtx4090", memory_bytes=24 * GIB, compute_capability=(8, 9), bandwidth=1_008_000_000_000, source="fixture"
)
WRAPPERS = {ShardKind.DDP: "DistributedDataParallel", ShardKind.ZERO3: "DeepSpeedEngine"}
CPU = device_spec("cpu", "cpu", 32 * GIB, source="fixture")
ANY = device_spec("any", source="fixture")


def spec(
    *,
    method: MethodSpec = LORA,
    shard: ShardKind = ShardKind.ZERO3,
    device: DeviceSpec = RTX4090,
    gpus_per_node: int = 8,
    nodes: int = 1,
    micro_batch: int = 4,
) -> JobSpec:
    """A job on the tiny model."""
    return job_spec(
        model={"license": "apache-2.0", "path": "/models/tiny", "config": TINY_CONFIG},
        method=method,
        shard=shard_defaults(shard, TINY_CONFIG["hidden_size"], on_cuda=device.kind == "cuda"),
        data={"name": "alpaca", "path": "/data/rows.jsonl"},
        train={"global_batch": 64, "micro_batch": micro_batch, "sequence_length": 1024},
        device=device,
        gpus=gpus_per_node,
        nodes=nodes,
    )


def _term(name: str, kind: TermKind, size_bytes: int, phases: tuple[Phase, ...], formula: str, source: str) -> Term:
    return Term(name=name, kind=kind, size_bytes=size_bytes, phases=phases, formula=formula, source=source)


def rank_plan(ranks: tuple[int, ...], *, saves: bool = False) -> RankPlan:
    """3 + 0.25 + 0.25 + 0.5 GiB that stay, 4 GiB of activations, 6 of logits in the loss, 512 MiB outside."""
    gathered = (
        _term("whole weights", TermKind.WEIGHTS, 12 * GIB, (Phase.SAVE,), "3 GiB x 4", "save gathers on rank 0"),
    )
    terms = (
        _term("embed_tokens", TermKind.WEIGHTS, 2 * GIB, EVERY_PHASE, "1,073,741,824 x 2 B", "bf16, frozen"),
        _term("layers", TermKind.WEIGHTS, 1 * GIB, EVERY_PHASE, "4,294,967,296 x 2 B / 8", "ZeRO-3 partition"),
        _term("lora_A and lora_B", TermKind.ADAPTERS, 256 * MIB, EVERY_PHASE, "134,217,728 x 2 B", "peft 0.21.2"),
        _term(
            "adapter gradients", TermKind.GRADIENTS, 256 * MIB, (Phase.BACKWARD, Phase.OPTIMIZER), "134,217,728 x 2 B",
            "one for each trained parameter, from the first backward on until the optimizer has stepped it",
        ),
        _term("exp_avg and _sq", TermKind.OPTIMIZER_STATES, 512 * MIB, (Phase.OPTIMIZER,), "2 x 64 Mi x 4 B", "adam"),
        _term("checkpoints", TermKind.ACTIVATIONS, 4 * GIB, STEP, "4 x 1,024 x 64 x 2 x 2 B", "one per block"),
        _term("logits", TermKind.LOGITS, 6 * GIB, (Phase.LOSS, Phase.EVALUATION), "4 x 1,024 x 8,192 x 4 B", "fp32"),
        _term("prefetch", TermKind.SHARDING_BUFFERS, 300 * KIB, STEP, "0.9 x 64^2 x 2 B", "deepspeed 0.19.8"),
        _term("CUDA context", TermKind.OUTSIDE, 512 * MIB, EVERY_PHASE, "constant", "measured: driver 580, H200"),
    )  # fmt: skip
    return RankPlan(ranks=ranks, terms=terms + (gathered if saves else ()))


def plan(
    job: JobSpec | None = None,
    *,
    verdict: Verdict = Verdict.FITS,
    low: float = 0.9,
    high: float = 1.1,
    ranks: tuple[RankPlan, ...] | None = None,
    smallest_card: str | None = None,
    suggestions: tuple[Suggestion, ...] = (),
) -> MemoryPlan:
    """A plan whose totals follow from its terms, with 2 % of the allocator's reserve."""
    job = job or spec()
    ranks = ranks or (rank_plan(tuple(range(job.world_size))),)
    worst = max(ranks, key=lambda rank: rank.allocated_bytes + rank.outside_bytes)
    allocated = worst.allocated_bytes
    reserved = allocated + (256 * MIB if job.device.kind == "cuda" else 0)
    process = reserved + worst.outside_bytes
    return MemoryPlan(
        spec=job,
        instrument="closed form",
        ranks=ranks,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        process_bytes=process,
        process_low_bytes=int(process * low),
        process_high_bytes=int(process * high),
        least_capacity_bytes=process,
        host_ram_bytes_per_node=40 * GIB,
        checkpoint_bytes=900 * MIB,
        result_bytes=270 * MIB,
        capacity_bytes=job.device.memory_bytes,
        verdict=verdict,
        smallest_card=smallest_card,
        suggestions=suggestions,
    )


SUGGESTIONS = (
    Suggestion(
        overrides=("train.micro_batch=1",), process_bytes=9 * GIB, time_ratio=1.13, changes_training=False,
        note="micro batch 1, more accumulation",
    ),
    Suggestion(
        overrides=("train.loss=fused_linear", "train.micro_batch=2"), process_bytes=7 * GIB + 300 * MIB,
        time_ratio=1.02, changes_training=False, note="the logits are never whole",
    ),
    Suggestion(
        overrides=("method=qlora",), process_bytes=5 * GIB, time_ratio=12.4, changes_training=True, note="4-bit base",
    ),
)  # fmt: skip


def train_metrics(step: int, *, num_steps: int = 20, start_s: float = 1000.0) -> TrainMetrics:
    """A step that takes two seconds, with a loss that falls from 3 by a fifth each time."""
    return TrainMetrics(
        time_s=start_s + 2.0 * step, attempt=1, step=step, num_steps=num_steps, epoch=step / num_steps,
        loss=3.0 * 0.95**step, learning_rate=1e-4, grad_norm=1.0, samples_per_s=32.0, tokens_per_s=12_345.0,
    )  # fmt: skip


def eval_metrics(step: int, loss: float, *, start_s: float = 1000.0) -> EvalMetrics:
    return EvalMetrics(time_s=start_s + 2.0 * step + 0.5, attempt=1, step=step, loss=loss, num_samples=60)


def measurement(rank: int, *, gpu: bool) -> RankMeasurement:
    """A rank measured near the plan of rank_plan: 13.5 GiB allocated on a GPU, 13 GiB on a CPU."""
    return RankMeasurement(
        rank=rank,
        host="alpha",
        device=f"cuda:{rank}" if gpu else "cpu",
        allocated_bytes=(13 * GIB + 512 * MIB) if gpu else 13 * GIB,
        reserved_bytes=14 * GIB if gpu else None,
        process_bytes=14 * GIB + 512 * MIB if gpu else None,
        rss_bytes=2 * GIB if gpu else 13 * GIB + 768 * MIB,
        by_phase={},
    )


RAN_OUT = (
    "CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 has a total capacity of 23.99 GiB of which 5.21 GiB is "
    "free. Including non-PyTorch memory, this process has 18.78 GiB memory in use. Of the allocated memory 17.52 GiB "
    "is allocated by PyTorch, and 812.20 MiB is reserved by PyTorch but unallocated.\nmore"
)
PEER_GONE = "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error, NCCL version 2.27.3"
END = NodeEnd(
    attempt=1, node_rank=0, host="alpha", started_at_s=990.0, ended_at_s=1030.0, exit_code=1, oom_kills=0,
    deaths=(
        RankDeath(rank=3, seen_at_s=1025.2, exit_code=1),
        RankDeath(rank=0, seen_at_s=1025.3, exit_code=1),
        RankDeath(rank=1, seen_at_s=1026.0, exit_code=-15),
        RankDeath(rank=2, seen_at_s=1026.0, exit_code=-15),
    ),
)  # fmt: skip


def run_folder(root: Path, job: JobSpec, *, status: Status, gpu: bool = True) -> Outcome:
    """A run folder as the launcher and the ranks leave it, and the outcome read from it."""
    folder = RunFolder(root)
    folder.logs(1).mkdir(parents=True)
    write_record(folder.job, job)
    write_record(folder.memory_plan, plan(job))
    started = Started(
        attempt=1, time_s=1000.0, world_size=job.world_size, device=job.device.name, wrapper=WRAPPERS[job.shard.kind],
        resumed_from_step=None, num_parameters=655_680 + 4_096, num_trainable_parameters=4_096, num_train_samples=1280,
        num_eval_samples=60, num_truncated_samples=7, versions={}, checks={},
    )  # fmt: skip
    write_record(folder.started(1), started)
    last = 20 if status is Status.FINISHED else 12
    append_record(folder.metrics, eval_metrics(0, 3.0))
    for step in range(1, last + 1):
        append_record(folder.metrics, train_metrics(step))
    if status is Status.FINISHED:
        append_record(folder.metrics, eval_metrics(20, 1.2))
        folder.result.mkdir()
    finished = Finished(
        attempt=1, time_s=1042.0, num_steps=20, train_loss=1.9, eval_loss_before=3.0, eval_loss_after=1.2,
        samples_per_s=32.0, tokens_per_s=12_345.0, train_time_s=40.0, result="result",
    )  # fmt: skip
    stopped = Stopped(attempt=1, time_s=1025.0, step=12, cause="stop file", checkpoint="checkpoints/checkpoint-12")
    if status is Status.STOPPED:
        (folder.checkpoints / "checkpoint-12").mkdir(parents=True)
    failures = (
        Failed(
            attempt=1, time_s=1025.0, rank=3, host="alpha", error_type="OutOfMemoryError",
            message=RAN_OUT, traceback="Traceback ...", phase="loss", step=13,
        ),
        Failed(
            attempt=1, time_s=1024.9, rank=0, host="alpha", error_type="DistBackendError", message=PEER_GONE,
            traceback="Traceback ...",
        ),
    )  # fmt: skip
    failed = status is Status.FAILED
    if failed:
        for failure in failures:
            write_record(folder.failed(1, failure.rank), failure)
        write_record(folder.node_end(1, 0), END)
        log = folder.logs(1) / "x" / "attempt_0" / "3" / "stderr.log"
        log.parent.mkdir(parents=True)
        log.write_text("".join(f"[rank3] line {n} of the log\n" for n in range(1, 16)))
    found = diagnose_attempt(folder, 1) if failed else None
    return Outcome(
        run_dir=root,
        status=status,
        exit_code={Status.FINISHED: 0, Status.STOPPED: 130}.get(status, 5),
        attempt=1,
        finished=finished if status is Status.FINISHED else None,
        stopped=stopped if status is Status.STOPPED else None,
        failures=failures if failed else (),
        first_cause="" if found is None else found.what,
        log_tail=() if found is None else found.log_tail,
        measurements=() if failed else tuple(measurement(rank, gpu=gpu) for rank in range(job.world_size)),
        diagnosis=found,
    )
