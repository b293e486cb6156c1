"""A whole job on the tape: its model, then steps of training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from launcher.models import Role
from launcher.planner import optimizer, quantisation
from launcher.planner.inventory import Block, Held, State
from launcher.planner.sharding import rows
from launcher.planner.stream.block import FP32, Run, block, cast, rms_norm
from launcher.planner.stream.sharded import Groups
from launcher.planner.stream.tape import Storage, Tape, Tensor, checkpoint, operation, root, run_backward
from launcher.planner.tracing.events import Event
from launcher.planner.workload import Workload
from launcher.spec import ActivationCheckpointing, Loss, MethodKind, Offload, QuantType, ShardKind

INDEX_BYTES = 8
NUM_STEPS = 2  # the first makes the optimizer's states; a third repeats the second
ROOT = "root"


def is_written_down(work: Workload) -> bool:
    """Whether this job's stream is known: dense Llama-like blocks whose logits are materialised, on a single rank, or
    over FSDP2 without adapters."""
    spec = work.spec
    alone = spec.world_size == 1 and spec.shard.kind is ShardKind.DDP
    sharded = spec.shard.kind is ShardKind.FSDP and work.checkpointing and spec.method.kind is MethodKind.FULL
    plain = work.shape.num_experts == 0 and not work.shape.final_logit_softcapping and not _is_fused(work)
    return (
        (alone or sharded)
        and plain
        and spec.train.loss is Loss.CROSS_ENTROPY
        and spec.train.activation_checkpointing in (ActivationCheckpointing.NONE, ActivationCheckpointing.FULL)
        and spec.method.quant_type is not QuantType.INT8
        and spec.shard.offload is Offload.NONE
        and work.on_cuda
    )


def _is_fused(work: Workload) -> bool:
    return any("qkv_proj" in p.name for p, _ in work.inventory.counted())


def events(work: Workload) -> list[Event]:
    """The stream of one rank: loading, then two steps."""
    assert is_written_down(work)
    job = _Job(work)
    for _ in range(NUM_STEPS):
        for _ in range(work.spec.gradient_accumulation):
            job.forward_and_backward()
        job.step()
    return list(job.run.tape.events)


class _Job:
    """The parameters, gradients and states that outlive a pass."""

    def __init__(self, work: Workload) -> None:
        self.run = Run(work=work, tape=Tape())
        self.groups = Groups(self.run) if work.spec.shard.kind is ShardKind.FSDP else None
        self.layers = [kind for kind in work.inventory.blocks for _ in range(kind.copies)]
        self.held = list(self._parameters())
        self.states: list[Storage] = []

    def _parameters(self) -> Iterator[Storage]:
        """The weights as they come: in the compute dtype, then quantised, and upcast where the practice does so."""
        work, tape = self.run.work, self.run.tape
        upcast: list[tuple[Storage, int]] = []
        for p in self._each():
            if p.state is State.QUANTISED:
                whole = tape.storage(p.numel * work.matmul_bytes)
                yield tape.storage(quantisation.packed_bytes(p.numel))
                double_quant = bool(work.spec.method.double_quant)
                yield tape.storage(quantisation.constants_bytes(p.numel, double_quant=double_quant))
                del whole
                continue
            width = work.stored_dtype(p.state).num_bytes
            if self.groups is not None:
                yield tape.storage(rows.padded_numel(p.shape, work.world_size) * width)
            elif p.state is State.FROZEN and width != work.matmul_bytes:
                upcast.append((tape.storage(p.numel * work.matmul_bytes), p.numel * width))
            else:
                yield tape.storage(p.numel * width)
        while upcast:
            narrow, size_bytes = upcast.pop(0)
            yield tape.storage(size_bytes)
            del narrow

    def _each(self) -> Iterator[Held]:
        for group in (self.run.work.inventory.root, *self.layers):
            yield from group.parameters

    def forward_and_backward(self) -> None:
        """One micro batch."""
        work, tape = self.run.work, self.run.tape
        self.run.in_forward = True
        batch = [tape.storage(work.tokens * INDEX_BYTES) for _ in range(2)]
        if self.groups is not None:
            self.groups.gather(ROOT, work.inventory.root, forward=True)
        embedded = root(tape, tape.storage(work.tokens * work.shape.hidden_size * work.residual_bytes))
        stream: Tensor = embedded
        for index, kind in enumerate(self.layers):
            stream = self._layer(index, kind, stream)
        norm = next(p for p in work.inventory.root.parameters if p.role is Role.NORM)
        hidden = rms_norm(self.run, stream, norm, work.residual_bytes)
        hidden = cast(self.run, hidden, work.residual_bytes, work.logit_bytes)
        del stream
        logits, width = self._head(hidden), work.logit_bytes
        del hidden
        if work.practice.drops_half_logits:
            logits, width = cast(self.run, logits, width, FP32), FP32
        kept = logits if work.practice.keeps_outputs else None
        loss = self._cross_entropy(logits, width)
        del logits
        self.run.copies.clear()
        self.run.in_forward = False
        run_backward(loss, tape.storage(FP32), embedded.node)
        del kept, batch, loss
        if self.groups is not None:
            self.groups.reduce(ROOT, work.inventory.root, "")
            self.groups.finish()

    def _layer(self, index: int, kind: Block, given: Tensor) -> Tensor:
        work, tape, groups = self.run.work, self.run.tape, self.groups
        function = partial(block, self.run, kind, index)
        if not work.checkpointing:
            return function(given)
        if groups is None:
            return checkpoint(tape, function, given)
        name, before = f"layers.{index}", index - 1

        def before_backward() -> None:
            groups.gather(name, kind, forward=False)
            if before >= 0:
                groups.prefetch(f"layers.{before}", self.layers[before])

        groups.gather(name, kind, forward=True)
        output = checkpoint(
            tape,
            function,
            given,
            before_backward=before_backward,
            after_backward=partial(groups.reduce, name, kind, f"{name}."),
        )
        groups.release(name)
        return output

    def _head(self, hidden: Tensor) -> Tensor:
        work = self.run.work
        wanted = Role.EMBEDDING if work.shape.tie_word_embeddings else Role.HEAD
        head = next(p for p in work.inventory.root.parameters if p.role is wanted)
        size = work.tokens * work.shape.vocab_size * work.logit_bytes
        if not head.state.is_trained:
            return operation(self.run.tape, size, [hidden])
        return operation(
            self.run.tape,
            size,
            [hidden],
            saved=[hidden],
            extra_saved=self.run.cast_weight(head.name, head),
            wants_gradient=True,
            on_backward=partial(self.run.leave_gradient, head.name, head),
        )

    def _cross_entropy(self, logits: Tensor, width: int) -> Tensor:
        """ForCausalLMLoss and torch's cross_entropy."""
        practice = self.run.work.practice
        wide = cast(self.run, logits, width, FP32)
        shifted = operation(self.run.tape, wide.size_bytes, [wide]) if practice.shifted_logits_copy else wide
        likelihoods = operation(self.run.tape, wide.size_bytes, [shifted], saves_output=True)
        return operation(self.run.tape, FP32, [likelihoods], saved=[likelihoods])

    def step(self) -> None:
        """The optimizer, and zero_grad(set_to_none=True)."""
        work, tape = self.run.work, self.run.tape
        kind, dtype = work.spec.train.optimizer, work.dtypes.optimizer_states
        sizes = [self._stepped_numel(p) for p in self._each() if p.state.is_trained]
        if not self.states:
            for numel in sizes:
                total = optimizer.states_bytes(kind, [(numel, 1)], dtype)
                self.states.extend(tape.storage(total // optimizer.MOMENTS) for _ in range(optimizer.MOMENTS))
        if work.steps_by_foreach:
            temporaries = [tape.storage(optimizer.foreach_bytes(kind, numel, dtype)) for numel in sizes]
            del temporaries
        self.run.gradients.clear()
        if self.groups is not None:
            self.groups.reduced.clear()

    def _stepped_numel(self, parameter: Held) -> int:
        if self.groups is None:
            return parameter.numel
        return rows.local_numel(parameter.shape, self.run.work.world_size, 0)
