"""What a precision means in bytes: one table, held by the planner and asserted by the job.

Mixed precision means the same training under every sharding: fp32 master weights of whatever is trained,
fp32 optimizer states, half-precision compute. The libraries get there differently:
DDP and FSDP2 hold the trained parameters themselves in fp32 and cast on the way into each operation or
all-gather; DeepSpeed holds them in half precision with an fp32 master partition beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.spec import Dtype, JobSpec, MethodKind, Precision, ShardKind

COMPUTE = {
    Precision.BF16_MIXED: Dtype.BFLOAT16,
    Precision.BF16_PURE: Dtype.BFLOAT16,
    Precision.FP16_MIXED: Dtype.FLOAT16,
    Precision.FP32: Dtype.FLOAT32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtypes:
    """The dtype of everything a rank holds.

    frozen: weights that are not trained and not quantised (None for full fine-tuning).
    trained: the trained parameters as the module holds them. master: a separate copy kept by the engine, or None.
    DeepSpeed 0.19.8 always keeps one: ZeRO-2 clones its partition (stage_1_and_2.py). ZeRO-3 would step its own
    partitions where they have the master's dtype already, but compares a device with its name, which never match
    (stage3.py _create_fp32_partitions).
    """

    frozen: Dtype | None
    trained: Dtype
    master: Dtype | None
    gradients: Dtype
    optimizer_states: Dtype
    compute: Dtype


def is_deepspeed(shard: ShardKind) -> bool:
    """Whether the sharding is DeepSpeed's."""
    return shard in (ShardKind.ZERO2, ShardKind.ZERO3)


def dtypes(spec: JobSpec) -> Dtypes:
    """The dtypes of a job."""
    compute = COMPUTE[spec.train.precision]
    frozen = None if spec.method.kind is MethodKind.FULL else compute
    if spec.train.precision in (Precision.FP32, Precision.BF16_PURE):
        return Dtypes(
            frozen=frozen,
            trained=compute,
            master=compute if is_deepspeed(spec.shard.kind) else None,
            gradients=compute,
            optimizer_states=compute,
            compute=compute,
        )
    engine = is_deepspeed(spec.shard.kind)
    return Dtypes(
        frozen=frozen,
        trained=compute if engine else Dtype.FLOAT32,
        master=Dtype.FLOAT32 if engine else None,
        gradients=compute if engine else Dtype.FLOAT32,
        optimizer_states=Dtype.FLOAT32,
        compute=compute,
    )
