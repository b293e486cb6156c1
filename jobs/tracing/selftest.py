"""Before a job is traced: small programs whose bytes are known by hand, so that a replacement that broke is noticed.

Each check is a sentence about what a run does; the sentence of the first that does not hold is the failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jobs.tracing import cuda_runtime, gloo, kernels
from jobs.tracing.recorder import Recorder
from jobs.tracing.target import Target
from launcher.planner.tracing.events import Kind

FLOAT, BF16 = 4, 2  # bytes


class SelfTestFailed(RuntimeError):
    """The tracer does not record what it must: its answers would be wrong."""


def new_recorder(target: Target) -> Recorder:
    """A recorder for the target's device."""
    if not target.on_cuda:
        return Recorder("cpu", scratch_bytes=gloo.scratch_bytes)
    return Recorder("cuda", current_stream=cuda_runtime.current_stream_number, scratch_bytes=kernels.scratch_bytes)


def run(target: Target) -> None:
    """Raise SelfTestFailed unless known programs are recorded with their exact bytes."""
    for check in CHECKS + (CUDA_CHECKS if target.on_cuda else ()):
        try:
            with _recording(target) as recorder:
                check(recorder)
        except SelfTestFailed:
            raise
        except Exception as error:
            raise SelfTestFailed(f"{check.__doc__} ({type(error).__name__}: {error})") from error


@contextmanager
def _recording(target: Target) -> Iterator[Recorder]:
    with FakeTensorMode(allow_non_fake_inputs=True), new_recorder(target) as recorder:
        yield recorder


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise SelfTestFailed(f"{what}: found {found}, expected {expected}")


def a_step_takes_what_its_tensors_take(recorder: Recorder) -> None:
    """A matrix product and its gradient take the bytes of their tensors, and give them back."""
    inputs = torch.empty(4, 256, device=recorder.device)
    weight = nn.Parameter(torch.empty(256, 512, device=recorder.device))
    product = inputs @ weight
    loss = product.sum()
    alive = (4 * 256 + 256 * 512 + 4 * 512 + 1) * FLOAT
    _expect(recorder.main.allocated_bytes, alive, "bytes after the forward pass")
    loss.backward()
    # on top: the gradient of the loss, one number, and that of the weight
    _expect(recorder.main.peak_bytes, alive + (1 + 256 * 512) * FLOAT, "peak of the backward pass")
    del inputs, product, loss, weight
    _expect(recorder.main.allocated_bytes, 0, "bytes after the last reference is gone")


def a_step_that_is_repeated_takes_the_same(recorder: Recorder) -> None:
    """The second of two equal steps, whose operations are known by then, makes and frees what the first did."""
    weight = nn.Parameter(torch.empty(256, 512, device=recorder.device))
    streams = []
    for _ in range(2):
        begin = len(recorder.main.events)
        inputs = torch.empty(4, 16, 256, device=recorder.device)
        first, second = (inputs.view(64, 256)[8:] @ weight).relu_().chunk(2, dim=-1)
        (first * second).sum().backward()
        del inputs, first, second
        weight.grad = None
        streams.append([(kind, size_bytes) for kind, _, size_bytes, _ in recorder.main.events[begin:]])
    _expect(streams[1], streams[0], "events of an equal step")
    _expect(recorder.main.allocated_bytes, 256 * 512 * FLOAT, "bytes after both")


def a_module_moves_and_its_parameters_stay_the_same(recorder: Recorder) -> None:
    """Module.to moves the weights and keeps the parameters that others refer to."""
    module = nn.Linear(128, 64, bias=False, device="cpu")
    weight = module.weight
    module.to(device=recorder.device, dtype=torch.bfloat16)
    _expect(module.weight is weight, True, "the same parameter")
    _expect((weight.device.type, weight.dtype), (recorder.device, torch.bfloat16), "device and dtype after the move")
    _expect(recorder.main.allocated_bytes, 128 * 64 * BF16, "bytes after the move")


def storages_are_resized(recorder: Recorder) -> None:
    """A storage that is resized to nothing is freed, and allocated when it is resized back."""
    tensor = torch.empty(1024, device=recorder.device)
    tensor.untyped_storage().resize_(0)
    _expect(recorder.main.allocated_bytes, 0, "bytes of a storage resized to nothing")
    tensor.untyped_storage().resize_(4096)
    _expect(recorder.main.allocated_bytes, 4096, "bytes of a storage resized back")


def storages_have_addresses(recorder: Recorder) -> None:
    """Two storages lie at two addresses, and a view lies inside its own."""
    first, second = (torch.empty(64, device=recorder.device) for _ in range(2))
    _expect(first.data_ptr() != second.data_ptr(), True, "different addresses")
    _expect(first[16:].data_ptr() - first.data_ptr(), 16 * FLOAT, "offset of a view")


def the_fused_optimizer_makes_two_states(recorder: Recorder) -> None:
    """AdamW(fused=True) keeps two moments as large as the weight and a step, and needs nothing more."""
    weight = nn.Parameter(torch.empty(1000, device=recorder.device))
    weight.grad = torch.empty_like(weight)
    before = recorder.main.allocated_bytes
    torch.optim.AdamW([weight], lr=1e-3, fused=True).step()
    expected = before + (2 * 1000 + 1) * FLOAT
    _expect(recorder.main.peak_bytes, expected, "peak of the first step")


def streams_have_pools(recorder: Recorder) -> None:
    """What is allocated on another stream is recorded with its number."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        kept = torch.empty(512, device="cuda")
    other = torch.empty(512, device="cuda")
    numbers = [event[3] for event in recorder.main.events if event[0] is Kind.ALLOCATE]
    _expect(numbers, [stream.stream_id, 0], "streams of two allocations")
    _expect(stream.stream_id != 0 and kept is not other, True, "a stream beside the default one")


def autocast_is_on(recorder: Recorder) -> None:
    """torch.autocast casts a matrix product of fp32 tensors to bf16, and keeps the weight's copy until it ends."""
    inputs = torch.empty(2, 64, device="cuda")
    weight = nn.Parameter(torch.empty(64, 32, device="cuda"))
    before = recorder.main.allocated_bytes
    with torch.autocast("cuda", dtype=torch.bfloat16):
        product = inputs @ weight
        _expect(product.dtype, torch.bfloat16, "dtype of a product under autocast")
        cached = recorder.main.allocated_bytes - before - product.numel() * BF16
    _expect(cached >= 64 * 32 * BF16, True, "bytes of the weight's cached copy")


def attention_is_flash(recorder: Recorder) -> None:
    """Causal attention in bf16 runs in the flash kernel forward and backward, whose scratch memory is known."""
    shape = (1, 4, 256, 64)
    query, key, value = (torch.empty(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True) for _ in range(3))
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    output.sum().backward()
    operations = {block.operation for block in recorder.blocks}
    _expect("aten::_scaled_dot_product_flash_attention" in operations, True, "flash attention forward")
    scratch = [event[2] for event in recorder.main.events if event[0] is Kind.WORKSPACE]
    softmax_d_and_dq = 4 * 256 * (1 + 64) * FLOAT
    _expect(scratch, [softmax_d_and_dq], "scratch memory of flash attention backward")


def lists_of_tensors_are_stepped_at_once(recorder: Recorder) -> None:
    """The optimizer's default on CUDA is foreach, which needs temporaries as large as what it steps."""
    weights = [nn.Parameter(torch.empty(1000, device="cuda")) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    torch.optim.AdamW(weights, lr=1e-3).step()
    _expect(any("_foreach" in block.operation for block in recorder.blocks), True, "a foreach operation")


Check = Callable[[Recorder], None]
CHECKS: tuple[Check, ...] = (
    a_step_takes_what_its_tensors_take,
    a_step_that_is_repeated_takes_the_same,
    a_module_moves_and_its_parameters_stay_the_same,
    storages_are_resized,
    storages_have_addresses,
    the_fused_optimizer_makes_two_states,
)
CUDA_CHECKS: tuple[Check, ...] = (
    streams_have_pools,
    autocast_is_on,
    attention_is_flash,
    lists_of_tensors_are_stepped_at_once,
)
