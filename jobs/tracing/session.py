"""One trace from beginning to end: everything replaced, checked, the job run, the recording put into a Trace."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launcher.planner.tracing.events import Trace
from launcher.precision import is_deepspeed
from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec, Optimizer, ShardKind, to_json

MASTER_PORT = "29500"  # named, never opened: the process group is fake


def set_environment(spec: JobSpec, rank: int) -> None:
    """What torchrun and the launcher would have set for this rank; before any library is imported."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank % spec.gpus_per_node),
        GROUP_RANK=str(rank // spec.gpus_per_node),
        WORLD_SIZE=str(spec.world_size),
        LOCAL_WORLD_SIZE=str(spec.gpus_per_node),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=MASTER_PORT,
        CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1",
        HF_DEACTIVATE_ASYNC_LOAD="1",  # fake tensors belong to the thread that makes them
        TOKENIZERS_PARALLELISM="false",
        DS_ACCELERATOR=spec.device.kind,
        TORCHDYNAMO_DISABLE="1",  # DeepSpeed compiles functions of optimizers that nobody uses
    )


def record(
    spec: JobSpec, rank: int, say: Callable[[str], None] = lambda _text: None, *, scratch: Path | None = None
) -> Trace:
    """Trace one rank of a job in this process, which is of no use for anything else afterwards.

    say() is told what is being done. scratch: where the job's run folder is made; whoever owns it removes what a
    killed tracer leaves there.
    """
    began_s = time.perf_counter()
    say("importing libraries")
    gc.disable()
    from torch._subclasses.fake_tensor import FakeTensorMode

    from jobs.tracing import (
        attention,
        cuda_runtime,
        ddp,
        fake_cuda,
        fake_tensors,
        fsdp,
        huggingface,
        kernels,
        process_group,
        quantised,
        selftest,
        shortcuts,
        zero,
    )
    from jobs.tracing.categories import category_of
    from jobs.tracing.job import TracedJob, num_steps
    from jobs.tracing.recorder import Recorder
    from jobs.tracing.target import Target
    from jobs.versions import installed_versions

    target = Target(spec=spec, rank=rank)
    notes: list[str] = []
    if target.on_cuda:
        fake_cuda.install()
        cuda_runtime.install(target, Recorder.active)
        attention.install(target)
        kernels.install()
    fake_tensors.install(Recorder.active)
    shortcuts.install()
    process_group.install(target)
    huggingface.install(target)
    if spec.shard.kind is ShardKind.DDP:
        ddp.install(notes.append, Recorder.active)
    if spec.shard.kind is ShardKind.FSDP:
        fsdp.install(Recorder.active)
    if is_deepspeed(spec.shard.kind):
        zero.install(target, Recorder.active)
    if spec.train.optimizer is Optimizer.PAGED_ADAMW_8BIT and target.on_cuda:
        quantised.page_on_host(notes.append)
    # What the libraries consist of is never garbage: it is not looked through for any, neither now nor in the job.
    gc.freeze()
    gc.enable()
    selftest.run(target)
    recorder = selftest.new_recorder(target)
    if spec.method.quant_type is not None:
        recorder.expansions = quantised.install(target, notes.append)
    with tempfile.TemporaryDirectory(prefix="fitlaunch-trace-", dir=scratch) as folder:
        run = RunFolder(Path(folder))
        run.job.write_text(to_json(spec))
        job = TracedJob(target=target, run=run, recorder=recorder, say=say)
        zero.write_config(job.spec, run)
        with FakeTensorMode(allow_non_fake_inputs=True), recorder:
            job.run_to_end()
    labels, events, host_events = recorder.labelled(category_of(spec))
    asked = (f"{answer} ({count}x)" for answer, count in sorted(recorder.answers.counts.items()))
    return Trace(
        device=target.device_type,
        rank=rank,
        world_size=spec.world_size,
        num_steps=num_steps(spec),
        labels=labels,
        marks=tuple(recorder.marks),
        events=events,
        host_events=host_events,
        versions=installed_versions(),
        assumptions=(*notes, *asked),
        wall_s=time.perf_counter() - began_s,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
