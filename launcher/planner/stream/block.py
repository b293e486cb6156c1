"""One transformer block and the layers around it, written against the tape as transformers' modeling files are written
against torch (transformers 5.23 models/llama/modeling_llama.py; peft 0.21 tuners/lora/layer.py and bnb.py;
bitsandbytes 0.50 nn/modules.py Linear4bit)."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.models import Role
from launcher.planner import attention
from launcher.planner.inventory import Block, Held, State
from launcher.planner.stream.tape import Storage, Tape, Tensor, operation
from launcher.planner.workload import Workload
from launcher.spec import Attention, ShardKind

FP32 = 4


@dataclass(kw_only=True)
class Run:
    """A job on the tape: what layers read, the gradients that parameters have by now, and autocast's copies of fp32
    weights, which live until its context ends: that of the forward pass, or of one block's recomputation."""

    work: Workload
    tape: Tape
    gradients: dict[str, Storage] = field(default_factory=dict)
    copies: dict[str, Storage] = field(default_factory=dict)
    in_forward: bool = True

    def cast_weight(self, name: str, weight: Held) -> list[Storage]:
        """The weight as autocast hands it to a product; nothing where it is handed over as it is."""
        if not self.work.autocasts_weights:
            return []
        if name not in self.copies:
            self.copies[name] = self.tape.storage(weight.numel * self.work.matmul_bytes)
        return [self.copies[name]]

    def leave_gradient(self, name: str, parameter: Held) -> None:
        """A parameter's gradient, made once and added to in place afterwards."""
        numel = parameter.numel
        width = self.work.gradient_bytes if self.work.spec.shard.kind is ShardKind.DDP else self.work.matmul_bytes
        if self.work.autocasts_weights and parameter.state is State.TRAINED:
            self.tape.scratch(numel * self.work.matmul_bytes)
        if name in self.gradients:
            self.tape.scratch(numel * width)
        else:
            self.gradients[name] = self.tape.storage(numel * width)


def cast(run: Run, given: Tensor, from_bytes: int, to_bytes: int) -> Tensor:
    """tensor.to(dtype): the tensor itself where nothing changes."""
    if from_bytes == to_bytes:
        return given
    return operation(run.tape, given.size_bytes // from_bytes * to_bytes, [given])


def elementwise(run: Run, *inputs: Tensor, saved: tuple[Tensor, ...] = ()) -> Tensor:
    """A tensor as large as the first input."""
    return operation(run.tape, inputs[0].size_bytes, inputs, saved=saved)


def rms_norm(run: Run, given: Tensor, norm: Held, width: int) -> Tensor:
    """LlamaRMSNorm.forward."""
    if run.work.practice.compiled:
        return elementwise(run, given, saved=(given,))
    upcast = cast(run, given, width, FP32)
    variance = operation(run.tape, upcast.size_bytes // norm.shape[0], [upcast], saved=[upcast])
    run.tape.scratch(upcast.size_bytes)  # the squares
    normed = elementwise(run, upcast, variance, saved=(upcast, variance))
    del upcast, variance
    down = cast(run, normed, FP32, width)
    del normed
    return elementwise(run, down, saved=(down,) if norm.state.is_trained else ())


class Layers:
    """One block's parameters by the name of their module."""

    def __init__(self, block: Block, index: int) -> None:
        self.prefix = f"layers.{index}."
        self.held = {p.name: p for p in block.parameters}

    def weight(self, module: str) -> Held | None:
        return self.held.get(f"{module}.weight")

    def adapter(self, module: str, letter: str) -> Held | None:
        wanted = f"{module}.lora_{letter}."
        return next((p for name, p in self.held.items() if wanted in name), None)


def linear(run: Run, layers: Layers, module: str, given: Tensor) -> Tensor:
    """A linear layer with what quantisation and LoRA make of it."""
    weight = layers.weight(module)
    assert weight is not None
    result = _quantised(run, weight, given) if weight.state is State.QUANTISED else _dense(run, layers, module, given)
    matrix_a, matrix_b = layers.adapter(module, "A"), layers.adapter(module, "B")
    if matrix_a is None or matrix_b is None:
        return result
    if weight.state is State.QUANTISED:
        result = elementwise(run, result)  # peft clones what bitsandbytes gives
    return _adapted(run, layers.prefix, given, result, matrix_a, matrix_b)


def _dense(run: Run, layers: Layers, module: str, given: Tensor) -> Tensor:
    weight = layers.weight(module)
    assert weight is not None
    num_outputs, num_inputs = weight.shape
    size = given.size_bytes // num_inputs * num_outputs
    if not weight.state.is_trained:
        return operation(run.tape, size, [given])
    name = layers.prefix + weight.name
    return operation(
        run.tape,
        size,
        [given],
        saved=[given],
        extra_saved=run.cast_weight(name, weight),
        wants_gradient=True,
        on_backward=lambda: run.leave_gradient(name, weight),
    )


def _quantised(run: Run, weight: Held, given: Tensor) -> Tensor:
    """The weight is dequantised for each product, forward and backward, and gone after it."""
    work = run.work
    num_outputs, num_inputs = weight.shape
    dequantised_bytes = weight.numel * work.matmul_bytes
    narrow = cast(run, given, work.compute_bytes, work.matmul_bytes)
    dequantised = run.tape.storage(dequantised_bytes)
    product = operation(
        run.tape,
        narrow.size_bytes // num_inputs * num_outputs,
        [narrow],
        backward_scratch_bytes=dequantised_bytes,
    )
    del dequantised, narrow
    return cast(run, product, work.matmul_bytes, work.compute_bytes)


def _adapted(run: Run, prefix: str, given: Tensor, result: Tensor, matrix_a: Held, matrix_b: Held) -> Tensor:
    work = run.work
    width, own = work.compute_bytes, work.adapter_input_bytes
    rank, num_inputs = matrix_a.shape
    num_outputs = matrix_b.shape[0]
    trained = work.dtypes.trained.num_bytes
    wide = cast(run, given, width, trained)
    dropped = wide
    if work.spec.method.dropout:
        mask = run.tape.storage(wide.size_bytes // trained)
        dropped = operation(run.tape, wide.size_bytes, [wide], extra_saved=[mask])
        del mask
    read = cast(run, dropped, trained, own)
    del wide, dropped
    tokens = read.size_bytes // own // num_inputs
    low = operation(
        run.tape,
        tokens * rank * own,
        [read],
        saved=[read],
        wants_gradient=True,
        on_backward=lambda: run.leave_gradient(prefix + matrix_a.name, matrix_a),
    )
    del read
    high = operation(
        run.tape,
        tokens * num_outputs * own,
        [low],
        saved=[low],
        on_backward=lambda: run.leave_gradient(prefix + matrix_b.name, matrix_b),
    )
    del low
    scaled = elementwise(run, high)
    del high
    wider = result if width >= own else operation(run.tape, scaled.size_bytes, [result])
    added = elementwise(run, wider if width < own else result, scaled)
    return cast(run, added, max(width, own), width)


def rotary(run: Run, given: Tensor) -> Tensor:
    """apply_rotary_pos_emb for queries or keys: given * cos + rotate_half(given) * sin."""
    if run.work.practice.compiled:
        return elementwise(run, given)
    first = elementwise(run, given)
    run.tape.scratch(given.size_bytes // 2)  # the negated half
    rotated = elementwise(run, given)
    second = elementwise(run, rotated)
    del rotated
    return elementwise(run, first, second)


def self_attention(run: Run, layers: Layers, given: Tensor) -> Tensor:
    """LlamaAttention.forward."""
    work = run.work
    tokens, width = work.tokens, work.compute_bytes
    queries = linear(run, layers, "self_attn.q_proj", given)
    keys = linear(run, layers, "self_attn.k_proj", given)
    values = linear(run, layers, "self_attn.v_proj", given)
    for name, heads in (("q_norm", "queries"), ("k_norm", "keys")):
        norm = layers.weight(f"self_attn.{name}")
        if norm is not None and heads == "queries":
            queries = rms_norm(run, queries, norm, width)
        elif norm is not None:
            keys = rms_norm(run, keys, norm, width)
    turned = rotary(run, queries)
    queries = turned
    turned = rotary(run, keys)
    keys = turned
    del turned
    if attention.expands_keys(work):
        expanded_bytes = tokens * attention.query_width(work) * width
        keys = operation(run.tape, expanded_bytes, [keys])
        values = operation(run.tape, expanded_bytes, [values])
    if work.spec.train.attention is Attention.EAGER:
        mixed = _eager(run, queries, keys, values)
    else:
        mixed = _fused(run, queries, keys, values)
    del queries, keys, values
    return linear(run, layers, "self_attn.o_proj", mixed)


def _eager(run: Run, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """eager_attention_forward: scores, scaled, masked, softmax in fp32, and back."""
    work = run.work
    width = work.compute_bytes
    num_scores = work.tokens * work.spec.train.sequence_length * work.shape.num_attention_heads
    scores = operation(run.tape, num_scores * width, [queries, keys], saved=[queries, keys])
    scaled = elementwise(run, scores)
    del scores
    masked = elementwise(run, scaled)
    del scaled
    wide = operation(
        run.tape,
        num_scores * FP32,
        [masked],
        saves_output=True,
        backward_scratch_bytes=num_scores * FP32 if work.on_cuda else 0,
    )
    del masked
    probabilities = cast(run, wide, FP32, width)
    del wide
    size = work.tokens * attention.query_width(work) * width
    mixed = operation(run.tape, size, [probabilities, values], saved=[probabilities, values])
    return elementwise(run, mixed)  # transpose(1, 2).contiguous()


def _fused(run: Run, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """A flash or memory-efficient kernel; its backward pass collects the queries' gradient in fp32."""
    work = run.work
    lse = run.tape.storage(work.tokens * work.shape.num_attention_heads * FP32)
    num_elements = work.tokens * attention.query_width(work)
    return operation(
        run.tape,
        num_elements * work.compute_bytes,
        [queries, keys, values],
        saved=[queries, keys, values],
        saves_output=True,
        extra_saved=[lse],
        backward_scratch_bytes=num_elements * FP32 if work.compute_bytes != FP32 else 0,
    )


def mlp(run: Run, layers: Layers, given: Tensor) -> Tensor:
    """LlamaMLP.forward: down(act(gate) * up)."""
    gate = linear(run, layers, "mlp.gate_proj", given)
    if run.work.practice.compiled:
        up = linear(run, layers, "mlp.up_proj", given)
        product = elementwise(run, gate, up, saved=(gate, up))
        del gate, up
        return linear(run, layers, "mlp.down_proj", product)
    activated = operation(run.tape, gate.size_bytes, [gate], saved=[gate])
    del gate
    up = linear(run, layers, "mlp.up_proj", given)
    product = elementwise(run, activated, up, saved=(activated, up))
    del activated, up
    return linear(run, layers, "mlp.down_proj", product)


def block(run: Run, held: Block, index: int, given: Tensor) -> Tensor:
    """LlamaDecoderLayer.forward."""
    layers, width = Layers(held, index), run.work.residual_bytes
    norms = {p.name.split(".")[0]: p for p in held.parameters if p.role is Role.NORM and "." in p.name}
    normed = _normed(run, given, norms["input_layernorm"], width)
    mixed = self_attention(run, layers, normed)
    del normed
    stream = elementwise(run, given, mixed)
    del mixed
    normed = _normed(run, stream, norms["post_attention_layernorm"], width)
    projected = mlp(run, layers, normed)
    del normed
    if not run.in_forward:
        run.copies.clear()
    return elementwise(run, stream, projected)


def _normed(run: Run, given: Tensor, norm: Held, width: int) -> Tensor:
    """A norm's answer, in the dtype in which the layers after it compute."""
    return cast(run, rms_norm(run, given, norm, width), width, run.work.compute_bytes)
