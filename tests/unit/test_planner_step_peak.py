"""The planned peak of a whole step against what torch's CPU allocator handed out in a real one, on a single rank."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest
import torch
from accelerate.utils.operations import convert_to_fp32
from torch.profiler import ProfilerActivity, profile

from jobs.chunked_loss import use_chunked_loss
from jobs.recompute import checkpoint_activations
from launcher.planner.types import Phase
from launcher.spec import Loss
from tests.planner_jobs import estimate, job, only_rank
from tests.unit.test_planner_saved_tensors import build

STEP = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
BATCH, LENGTH = 4, 128


def measured_bytes(spec: Any) -> int:
    """The allocator's peak in the third step, on top of parameters and optimizer states."""
    work = estimate(spec).work
    model: Any = build(spec)
    checkpoint_activations(model, spec.train.activation_checkpointing)
    if spec.train.loss is Loss.CHUNKED:
        use_chunked_loss(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.arange(work.tokens).reshape(spec.micro_batch, LENGTH) % spec.model.config["vocab_size"]

    def step() -> None:
        cast = torch.autocast("cpu", torch.bfloat16) if work.outputs_upcast else contextlib.nullcontext()
        for _ in range(spec.gradient_accumulation):
            with cast:
                output = model(input_ids=ids, labels=ids)
            loss = (convert_to_fp32(output) if work.outputs_upcast else output)["loss"]
            del output
            loss.backward()
            del loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.zero_grad()

    step()
    step()
    gc.collect()
    states = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    scales = [module.state.SCB for module in model.modules() if hasattr(module, "state")]
    held = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers(), *states, *scales)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    running = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    return peak + sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_pure"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_peak_of_a_step(method: str, precision: str, checkpointing: str, accumulation: int) -> None:
    """Within 4 percent, on a model so small that no single term hides the others."""
    spec = job(
        CONFIG,
        method=method,
        precision=precision,
        checkpointing=checkpointing,
        device="cpu",
        micro_batch=BATCH,
        global_batch=BATCH * accumulation,
        sequence_length=LENGTH,
    )
    planned = max(only_rank(spec).allocated_bytes_in(phase) for phase in STEP)
    assert planned == pytest.approx(measured_bytes(spec), rel=0.04)


@pytest.mark.parametrize("checkpointing", ["reentrant", "selective"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_peak_of_a_step_with_other_checkpointing(method: str, checkpointing: str) -> None:
    """With so many layers that what they keep has the peak."""
    check_many_layers(method=method, precision="bf16_mixed", checkpointing=checkpointing)


@pytest.mark.parametrize("checkpointing", ["none", "full", "reentrant", "selective"])
def test_peak_of_a_step_over_8_bits(checkpointing: str) -> None:
    """Whose layers keep their inputs, whatever is checkpointed, unless the first pass builds no graph."""
    check_many_layers(method="qlora", quant_type="int8", precision="bf16_mixed", checkpointing=checkpointing)


def check_many_layers(**options: Any) -> None:
    spec = job(
        CONFIG | {"num_hidden_layers": 16},
        device="cpu",
        micro_batch=BATCH,
        global_batch=BATCH,
        sequence_length=LENGTH,
        **options,
    )
    planned = max(only_rank(spec).allocated_bytes_in(phase) for phase in STEP)
    assert planned == pytest.approx(measured_bytes(spec), rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_pure"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("loss", ["cross_entropy", "chunked"])
def test_peak_of_a_step_by_its_loss(loss: str, method: str, precision: str) -> None:
    """With a vocabulary so large that the loss has the peak."""
    spec = job(
        CONFIG | {"vocab_size": 8192, "num_hidden_layers": 1},
        method=method,
        precision=precision,
        loss=loss,
        device="cpu",
        micro_batch=2 * BATCH,
        global_batch=2 * BATCH,
        sequence_length=LENGTH,
    )
    planned = max(only_rank(spec).allocated_bytes_in(phase) for phase in STEP)
    assert planned == pytest.approx(measured_bytes(spec), rel=0.01)
