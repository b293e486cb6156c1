"""bitsandbytes' storage. 4 bits: two values a byte and constants for every block of 64. 8 bits: a byte each, and an
fp32 scale for every row (bitsandbytes 0.50 nn/modules.py Int8Params: CB and SCB).

Source of the former: bitsandbytes 0.50 functional.py, quantize_4bit: blocks of 64; an absmax in fp32 per block, or,
with double quantisation, an int8 absmax per block, an fp32 second-level absmax per 256 of those, a 256-entry fp32 code
and one fp32 offset. NF4 and FP4 differ only in their 16-entry code, which both hold in fp32.
"""

from __future__ import annotations

from launcher.planner.inventory import Held, State
from launcher.planner.workload import Workload
from launcher.spec import Precision, QuantType
from launcher.units import ceil_div

BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256
CODE_BYTES = 16 * 4
NESTED_CODE_BYTES = 256 * 4
OFFSET_BYTES = 4
SCALE_BYTES = 4
FP16, INT32 = 2, 4


def is_8bit(work: Workload) -> bool:
    """Whether the base is LLM.int8()'s."""
    return work.spec.method.quant_type is QuantType.INT8


def product_bytes_per_token(work: Workload) -> int:
    """What an 8-bit layer's forward pass on CUDA needs besides its input and result, at the larger of two points; the
    most over all layers (bitsandbytes 0.50 backends/cuda/ops.py int8_vectorwise_quant, backends/default/ops.py).

    Quantising K inputs: their fp16 copy, its absolute values, which of them are outliers, and the int8 values.
    Multiplying to N outputs: the int8 values, int32 sums, and the fp16 result before it is cast.
    """
    is_half = work.spec.train.precision is Precision.FP16_MIXED
    copy, uncast = (0, 0) if is_half else (FP16, FP16)
    return max(
        max((copy + FP16 + 2) * num_inputs, num_inputs + (INT32 + uncast) * num_outputs)
        for p, _ in work.inventory.counted(State.QUANTISED)
        for num_outputs, num_inputs in (p.shape,)
    )


def packed_bytes(numel: int) -> int:
    """The values alone."""
    return ceil_div(numel, 2)


def constants_bytes(numel: int, *, double_quant: bool) -> int:
    """Scales, codes and offset of one tensor."""
    num_blocks = ceil_div(numel, BLOCK_SIZE)
    if not double_quant:
        return num_blocks * 4 + CODE_BYTES
    nested = ceil_div(num_blocks, NESTED_BLOCK_SIZE)
    return num_blocks + nested * 4 + CODE_BYTES + NESTED_CODE_BYTES + OFFSET_BYTES


def scratch_bytes(work: Workload, numel: int) -> int:
    """What a tensor of so many elements takes while it is quantised, besides itself and the result. 4 bits quantised
    twice: an absmax in fp32 per block and its distance from their mean (bitsandbytes 0.50 functional.py quantize_4bit).
    8 bits: a copy in fp16 (nn/modules.py Int8Params._quantize)."""
    if is_8bit(work):
        return numel * FP16
    return 2 * ceil_div(numel, BLOCK_SIZE) * SCALE_BYTES if work.spec.method.double_quant else 0


def total_packed_bytes(work: Workload) -> int:
    """The values of every quantised tensor."""
    return sum(tensor_packed_bytes(work, p) * count for p, count in work.inventory.counted(State.QUANTISED))


def total_constants_bytes(work: Workload) -> int:
    """The constants of every quantised tensor."""
    return sum(tensor_constants_bytes(work, p) * count for p, count in work.inventory.counted(State.QUANTISED))


def tensor_packed_bytes(work: Workload, parameter: Held) -> int:
    """The values of one."""
    return parameter.numel if is_8bit(work) else packed_bytes(parameter.numel)


def tensor_constants_bytes(work: Workload, parameter: Held) -> int:
    """The constants of one."""
    if is_8bit(work):
        return parameter.shape[0] * SCALE_BYTES
    return constants_bytes(parameter.numel, double_quant=bool(work.spec.method.double_quant))
