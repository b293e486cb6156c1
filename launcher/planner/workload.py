"""What the formulas read: a job with its micro batch chosen, its parameters and the dtypes they have."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.models import ModelShape
from launcher.planner.inventory import Inventory, State
from launcher.precision import Dtypes, is_deepspeed
from launcher.spec import ActivationCheckpointing, Dtype, JobSpec, MethodKind, Precision, ShardKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A job as the planner sees it. Every size it leads to is for one rank."""

    spec: JobSpec
    shape: ModelShape
    inventory: Inventory
    dtypes: Dtypes

    @property
    def world_size(self) -> int:
        return self.spec.world_size

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass on one rank; every sequence at its full length."""
        return self.spec.micro_batch * self.spec.train.sequence_length

    @property
    def on_cuda(self) -> bool:
        return self.spec.device.kind == "cuda"

    @property
    def checkpointing(self) -> bool:
        """Whether blocks recompute their activations."""
        return self.spec.train.activation_checkpointing is ActivationCheckpointing.FULL

    @property
    def accumulates(self) -> bool:
        """Whether gradients of an earlier forward pass are alive in the next."""
        return self.spec.gradient_accumulation > 1

    @property
    def compute_bytes(self) -> int:
        """Bytes of one activation inside an operation."""
        return self.dtypes.compute.num_bytes

    @property
    def stepped_dtype(self) -> Dtype:
        """What DeepSpeed's optimizer steps in: fp32, but the weights' own dtype in bf16_pure."""
        return self.dtypes.optimizer_states

    @property
    def gradient_bytes(self) -> int:
        return self.dtypes.gradients.num_bytes

    @property
    def is_mixed(self) -> bool:
        return self.spec.train.precision in (Precision.BF16_MIXED, Precision.FP16_MIXED)

    @property
    def autocasts_weights(self) -> bool:
        """Whether fp32 parameters are cast inside each operation: mixed precision with no engine that gathers or
        holds them in the compute dtype. FSDP2 casts in the all-gather, DeepSpeed holds half precision."""
        return self.is_mixed and self.spec.shard.kind is ShardKind.DDP

    @property
    def residual_bytes(self) -> int:
        """Bytes of one element of the residual stream. Under autocast the embedding of an fp32 model gives fp32, and
        autocast touches neither it nor the additions (torch.amp op lists)."""
        if self.autocasts_weights and self.spec.method.kind is MethodKind.FULL:
            return Dtype.FLOAT32.num_bytes
        return self.compute_bytes

    @property
    def outputs_upcast(self) -> bool:
        """Whether accelerate wraps the forward pass in ConvertOutputsToFp32 (accelerate 1.15 accelerator.py,
        prepare_model: mixed precision of its own; its DeepSpeed path does not)."""
        return self.is_mixed and not is_deepspeed(self.spec.shard.kind)

    def stored_dtype(self, state: State) -> Dtype:
        """The dtype in which a rank's module holds parameters of a state; QUANTISED has none of its own."""
        assert state is not State.QUANTISED
        if state.is_trained:
            return self.dtypes.trained
        assert self.dtypes.frozen is not None
        return self.dtypes.frozen

    def gathered_bytes(self, state: State) -> int:
        """Bytes an element of `state` has while gathered for use by FSDP2 or ZeRO-3."""
        return self.stored_dtype(state).num_bytes if not self.is_mixed else self.compute_bytes
