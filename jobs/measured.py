"""One rank of a job on real tensors, beside ranks that are not there: what its memory really is.

    python -m jobs.measured JOB_JSON OUTPUT

The job is the one that jobs.train runs and jobs.trace traces: its model is loaded from real files, its Trainer and its
sharding library wrap it as rank 0 of as many ranks as the job has, and it trains for two steps on sequences of full
length. The other ranks are torch's fake process group, whose collectives return at once and move nothing, so that one
GPU can stand for eight; no memory of NCCL is measured. OUTPUT becomes a RankMeasurement.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from launcher.precision import is_deepspeed
from launcher.runs.layout import RunFolder
from launcher.runs.records import RankMeasurement, write_record
from launcher.spec import JobSpec, ShardKind, read_job

RANK = 0


def set_environment(spec: JobSpec) -> None:
    """What the launcher would have set for this rank, on the GPU that is there; before any library is imported."""
    from jobs.tracing.session import set_environment as set_traced_environment

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    set_traced_environment(spec, RANK)
    if spec.device.kind == "cuda":
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    if spec.shard.kind is ShardKind.FSDP:
        from_rank_0 = spec.method.quant_type is None
        os.environ.update(
            ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_CPU_RAM_EFFICIENT_LOADING=str(from_rank_0).lower()
        )


def measure(spec: JobSpec) -> RankMeasurement:
    """Run the job to its second step in this process, and read its meter."""
    import torch

    from jobs.calibrate import CudaProbe, Probe
    from jobs.tracing import process_group, zero
    from jobs.tracing.job import traced_spec
    from jobs.tracing.target import Target

    target = Target(spec=traced_spec(spec), rank=RANK)  # two steps, of the job's own files
    probe: Probe | None = None
    if target.on_cuda:
        torch.cuda.set_device(0)
        probe = CudaProbe(0)
    process_group.install(target)
    if spec.shard.kind is ShardKind.DDP:
        _reduce_nothing()
    if is_deepspeed(spec.shard.kind):
        _answer_for_other_ranks()
    with tempfile.TemporaryDirectory(prefix="fitlaunch-") as folder:
        run = RunFolder(Path(folder))
        zero.write_config(target.spec, run)
        job = _measured_job()(target=target, run=run, recorder=None, say=lambda _text: None)
        job.run_to_end()
    found: RankMeasurement = job.meter.measurement(RANK)
    if probe is None:
        return found
    # What the process holds beside the allocator now, and the most that the allocator held.
    outside = probe.read("end").outside_bytes
    return dataclasses.replace(found, process_bytes=outside + (found.reserved_bytes or 0))


def _measured_job() -> type:
    """The traced job's class with the job's own loading, batches and meter: on real tensors nothing is replaced."""
    from jobs.job import Job
    from jobs.memory import MemoryMeter, memory_meter
    from jobs.tracing.job import TracedJob

    class MeasuredJob(TracedJob):
        load_model = Job.load_model
        build_trainer = Job.build_trainer

        def make_meter(self) -> MemoryMeter:
            return memory_meter(self.device, everything=True)

    return MeasuredJob


def _reduce_nothing() -> None:
    """Let DistributedDataParallel do without the other ranks (torch 2.13): it compares shapes with theirs, which have
    no values here, and a communication hook returns each bucket as it is."""
    import torch.nn.parallel.distributed as ddp

    assert hasattr(ddp, "_verify_param_shape_across_processes")
    ddp._verify_param_shape_across_processes = lambda *_, **__: None
    original = ddp.DistributedDataParallel.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.register_comm_hook(None, _keep_bucket)

    ddp.DistributedDataParallel.__init__ = initialise  # type: ignore[method-assign]


def _keep_bucket(_state, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations other than its own
    import torch

    buffer = bucket.buffer()
    future: Any = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else [])
    future.set_result(buffer)
    return future


def _answer_for_other_ranks() -> None:
    """ZeRO-3 compares lists of numbers with rank 0's (deepspeed 0.19.8 runtime/zero/utils.py), which is this one."""
    from deepspeed.runtime.zero import utils

    for name in ("assert_lst_len_same_as_other_ranks", "get_lst_from_rank0"):
        assert hasattr(utils, name), f"deepspeed.runtime.zero.utils.{name} is gone"
    utils.assert_lst_len_same_as_other_ranks = lambda _numbers: None
    utils.get_lst_from_rank0 = lambda numbers: numbers


def main(arguments: list[str] | None = None) -> int:
    """Measure one rank."""
    parser = argparse.ArgumentParser(prog="python -m jobs.measured", description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="job.json, its micro batch chosen")
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    spec = read_job(options.job)
    set_environment(spec)
    write_record(options.output, measure(spec))
    # What was replaced in torch's libraries must not be called while the interpreter goes down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
