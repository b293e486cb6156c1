"""What activation checkpointing keeps of a block besides its input; bytes a token.

Selective (jobs/recompute.py): results of the attention kernel, and of the products whose inputs and outputs are no
wider than the residual stream or attention. A block that runs backward uses its own up.

8-bit layers keep their input as a plain attribute of autograd's node, which no checkpoint that lets autograd build its
graph can see (bitsandbytes 0.50 autograd/_functions.py, MatMul8bitLt and MatMul8bitFp): it stays for the whole step.
Only the reentrant form, whose first pass builds no graph, is spared.
"""

from __future__ import annotations

from launcher.models import Role
from launcher.planner import attention
from launcher.planner.inventory import Block, Held, State
from launcher.planner.workload import Workload
from launcher.spec import ActivationCheckpointing, Attention, QuantType

FP32 = 4


def kept_narrow_bytes(work: Workload, block: Block) -> int:
    """Selective checkpointing's results of one block that waits."""
    if work.spec.train.activation_checkpointing is not ActivationCheckpointing.SELECTIVE:
        return 0
    widths = (work.shape.hidden_size, attention.query_width(work))
    outputs = sum(_product_outputs(parameter, widths) for parameter in block.parameters)
    return outputs * work.compute_bytes + _kernel_bytes(work)


def is_kept(work: Workload, parameter: Held) -> bool:
    """Whether selective checkpointing keeps what a matrix makes."""
    return _product_outputs(parameter, (work.shape.hidden_size, attention.query_width(work))) > 0


def _product_outputs(parameter: Held, widths: tuple[int, int]) -> int:
    """Outputs of a matrix that are kept: (outputs, inputs) is its shape."""
    if parameter.role not in (Role.LINEAR, Role.ADAPTER, Role.ROUTER) or "lora_embedding" in parameter.name:
        return 0
    num_outputs, num_inputs = parameter.shape
    return num_outputs if num_inputs in widths and num_outputs <= max(widths) else 0


def _kernel_bytes(work: Workload) -> int:
    """The kernel's output and log-sum-exp; eager attention is no kernel."""
    if work.spec.train.attention is Attention.EAGER:
        return 0
    return attention.query_width(work) * work.compute_bytes + work.shape.num_attention_heads * FP32


def keeps_inputs(work: Workload) -> bool:
    """Whether quantised layers keep their inputs."""
    return work.spec.method.quant_type is QuantType.INT8


def kept_input_bytes(work: Workload, block: Block) -> int:
    """Inputs of 8-bit layers that stay in spite of checkpointing, those that several layers read once."""
    if not keeps_inputs(work) or work.spec.train.activation_checkpointing is ActivationCheckpointing.REENTRANT:
        return 0
    readers = {_input_of(p.name): p.shape[1] for p in block.parameters if p.state is State.QUANTISED}
    if kept_narrow_bytes(work, block) and _kernel_bytes(work) and not attention.output_is_copied(work):
        readers.pop("self_attn.o_proj", None)  # the kernel's result itself
    return sum(readers.values()) * work.compute_bytes


def _input_of(name: str) -> str:
    """Which tensor a layer reads: attention's input, the MLP's, or one of its own."""
    module = name.removesuffix(".weight")
    return module if module.endswith(("o_proj", "down_proj")) else module.partition(".")[0]
