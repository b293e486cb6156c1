"""The planned bytes of the chunked loss against what torch's CPU allocator handed out for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from jobs.chunked_loss import summed_loss
from launcher.planner.loss import chunked_bytes
from tests.planner_jobs import TINY_CONFIG, estimate, job

# Width, vocabulary, tokens, method: shapes at which each of the high points is the highest, and a single chunk.
SHAPES = {
    "softmax": (128, 8192, 1024, "full"),
    "added gradients": (1024, 2048, 1024, "full"),
    "products": (512, 512, 2048, "full"),
    "frozen head": (512, 512, 2048, "lora"),
    "one chunk": (128, 8192, 100, "full"),
}


def measured_bytes(*, hidden_size: int, vocab_size: int, tokens: int, trained: bool, dtype: torch.dtype) -> int:
    """The peak on top of head and hidden states."""
    head = torch.nn.Linear(hidden_size, vocab_size, bias=False, dtype=dtype).requires_grad_(trained)
    leaf = torch.randn(tokens, hidden_size, dtype=dtype, requires_grad=True)
    targets = torch.randint(vocab_size, (tokens,))

    def both_passes() -> None:
        summed_loss(head, leaf.clone(), targets, cap=None).backward()
        head.weight.grad = leaf.grad = None

    both_passes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        both_passes()
    running = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    return peak - leaf.untyped_storage().nbytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16_pure"])
@pytest.mark.parametrize("shape", SHAPES)
def test_peak_of_the_loss(shape: str, precision: str) -> None:
    hidden_size, vocab_size, tokens, method = SHAPES[shape]
    config = TINY_CONFIG | {"hidden_size": hidden_size, "vocab_size": vocab_size}
    spec = job(config, method=method, precision=precision, loss="chunked", device="cpu", global_batch=1)
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, sequence_length=tokens))
    measured = measured_bytes(
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        tokens=tokens,
        trained=method == "full",
        dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
    )
    assert max(chunked_bytes(estimate(spec).work).values()) == pytest.approx(measured, rel=2e-3)
