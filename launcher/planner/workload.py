"""What the formulas read: a job with its micro batch chosen, its parameters and the dtypes they have."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from launcher.models import ModelShape
from launcher.planner.constants import Constants, listed_constants
from launcher.planner.inventory import Inventory, State
from launcher.planner.practice import OURS, Practice
from launcher.precision import Dtypes, is_deepspeed
from launcher.spec import ActivationCheckpointing, Dtype, JobSpec, MethodKind, Precision, ShardKind


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A job as the planner sees it. Every size it leads to is for one rank. It is its own key for what is computed of
    it more than once, and what formulas read a hundred times a plan is worked out once."""

    spec: JobSpec
    shape: ModelShape
    inventory: Inventory
    dtypes: Dtypes
    practice: Practice = OURS
    constants: Constants = field(default_factory=listed_constants)

    @cached_property
    def world_size(self) -> int:
        return self.spec.world_size

    @cached_property
    def tokens(self) -> int:
        """Tokens of one forward pass on one rank; every sequence at its full length."""
        return self.spec.micro_batch * self.spec.train.sequence_length

    @cached_property
    def on_cuda(self) -> bool:
        return self.spec.device.kind == "cuda"

    @cached_property
    def checkpointing(self) -> bool:
        """Whether blocks recompute their activations."""
        return self.spec.train.activation_checkpointing is not ActivationCheckpointing.NONE

    @cached_property
    def steps_by_foreach(self) -> bool:
        """Whether the optimizer needs temporaries as large as what it steps."""
        return bool(self.practice.foreach)

    @cached_property
    def accumulates(self) -> bool:
        """Whether gradients of an earlier forward pass are alive in the next."""
        return self.spec.gradient_accumulation > 1

    @cached_property
    def compute_bytes(self) -> int:
        """Bytes of one activation inside an operation. A quantised layer answers in its input's dtype, which is that
        of the residual stream (bitsandbytes 0.50 nn/modules.py Linear4bit.forward)."""
        if self.spec.method.kind is MethodKind.QLORA and self.practice.block_dtype is not None:
            return self.practice.block_dtype.num_bytes
        return self.matmul_bytes

    @cached_property
    def expert_bytes(self) -> int:
        """Bytes of one activation inside stacked experts: autocast knows no grouped product, so that inputs are cast to
        the weights' own dtype (transformers 5.23 integrations/moe.py _grouped_mm)."""
        if self.autocasts_weights and self.spec.method.kind is MethodKind.FULL:
            return self.dtypes.trained.num_bytes
        return self.compute_bytes

    @cached_property
    def matmul_bytes(self) -> int:
        """Bytes of one element of what a matrix product reads: the precision's compute dtype."""
        return self.dtypes.compute.num_bytes

    @cached_property
    def adapter_input_bytes(self) -> int:
        """Bytes of one element of what LoRA's matrices read: under autocast and beside an engine in the compute dtype,
        otherwise in their own (peft 0.21 tuners/tuners_utils.py _cast_input_dtype)."""
        if self.autocasts_weights or (self.is_mixed and self.spec.shard.kind is not ShardKind.DDP):
            return self.matmul_bytes
        return self.dtypes.trained.num_bytes

    @cached_property
    def logit_bytes(self) -> int:
        """Bytes of one logit as the head gives it: under autocast and where an engine gathers the head, in the compute
        dtype, otherwise in the head's own."""
        if self.spec.shard.kind is not ShardKind.DDP or self.autocasts_weights:
            return self.matmul_bytes
        return self._embedding_bytes

    @cached_property
    def stepped_dtype(self) -> Dtype:
        """What DeepSpeed's optimizer steps in: fp32, but the weights' own dtype in bf16_pure."""
        return self.dtypes.optimizer_states

    @cached_property
    def gradient_bytes(self) -> int:
        return self.dtypes.gradients.num_bytes

    @cached_property
    def is_mixed(self) -> bool:
        return self.spec.train.precision in (Precision.BF16_MIXED, Precision.FP16_MIXED)

    @cached_property
    def autocasts_weights(self) -> bool:
        """Whether fp32 parameters are cast inside each operation: mixed precision with no engine that gathers or
        holds them in the compute dtype. FSDP2 casts in the all-gather, DeepSpeed holds half precision."""
        return self.is_mixed and self.practice.autocast and self.spec.shard.kind is ShardKind.DDP

    @cached_property
    def residual_bytes(self) -> int:
        """Bytes of one element of the residual stream: what the embedding gives. Autocast touches neither the lookup
        nor the additions (torch.amp op lists), so an fp32 embedding gives fp32; an engine that gathers parameters
        gives the compute dtype. A quantised model's blocks add what their norms' dtype makes of it."""
        if self.spec.shard.kind is not ShardKind.DDP:
            return self.matmul_bytes
        return max(self._embedding_bytes, self.compute_bytes)

    @cached_property
    def _embedding_bytes(self) -> int:
        """Bytes of one element of the embedding, and of the head, as a rank holds them: neither is ever quantised."""
        state = State.TRAINED if self.spec.method.kind is MethodKind.FULL else State.FROZEN
        return self.stored_dtype(state).num_bytes

    @cached_property
    def outputs_upcast(self) -> bool:
        """Whether accelerate wraps the forward pass in ConvertOutputsToFp32 (accelerate 1.15 accelerator.py,
        prepare_model: mixed precision of its own; its DeepSpeed path does not)."""
        return self.is_mixed and self.practice.autocast and not is_deepspeed(self.spec.shard.kind)

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
