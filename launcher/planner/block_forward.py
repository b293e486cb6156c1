"""What one transformer block needs of a token at the highest point of its forward pass.

Counted from the locals of transformers 5.23 models/llama/modeling_llama.py (LlamaDecoderLayer.forward and
LlamaMLP.forward) and of peft 0.21 tuners/lora/layer.py (Linear.forward): an adapted layer has its base's answer, its
adapter's, and that times the scaling, before the sum of which one is left.
"""

from __future__ import annotations

from functools import lru_cache

from launcher.planner import attention
from launcher.planner.block import (
    adapted_modules,
    adapter_bytes,
    block_bytes,
    casts_adapter_inputs,
    copies_adapter_inputs,
    is_sparse,
    mlp_element_bytes,
    mlp_width,
)
from launcher.planner.inventory import Block, Held, State
from launcher.planner.moments import Point
from launcher.planner.workload import Workload

SOURCE = (
    "transformers 5.23 models/llama/modeling_llama.py LlamaMLP.forward; peft 0.21 tuners/lora/layer.py Linear.forward"
)


def bytes_at(work: Workload, block: Block, point: Point, *, is_saving: bool) -> int:
    """At one point of its forward pass; is_saving: whether all is kept that a backward pass reads."""
    if point is Point.QUANTISED:
        return quantised_bytes(work, block, is_saving=is_saving)
    if point is Point.ATTENTION:
        kept = block_bytes(work, block)
        saved = kept.first_norm + kept.attention if is_saving else 0
        return max(saved, _streams(work, 2) + attention.forward_working_bytes(work))
    if point is Point.DOWN:
        saved = block_bytes(work, block).saved if is_saving else 0
        return max(saved, _streams(work, 3) + _down(work, block))
    return saving_bytes(work, block) if is_saving else working_bytes(work, block)


@lru_cache(maxsize=32)
def working_bytes(work: Workload, block: Block) -> int:
    """Where nothing is kept: the residual stream after attention, a norm's answer, and attention or the MLP."""
    return _streams(work, 2) + max(
        attention.forward_working_bytes(work), attention.returned_bytes(work) + _mlp(work, block)
    )


@lru_cache(maxsize=32)
def saving_bytes(work: Workload, block: Block) -> int:
    """Where all is kept that a backward pass reads: that, or at an adapter's turn in the MLP what it needs besides."""
    saved, besides = block_bytes(work, block).saved, _unsaved_by_adapters(work, block)
    return saved + (_unsaved_streams(work) + besides if besides else 0)


@lru_cache(maxsize=32)
def quantised_bytes(work: Workload, block: Block, *, is_saving: bool) -> int:
    """At the turn of a quantised layer, whose weight is written out: where nothing is kept, in the MLP the activated
    gate beside the layer's answer, and otherwise what attention reads; where all is kept, that and the answer."""
    if is_saving:
        return block_bytes(work, block).saved + _unsaved_streams(work) + _streams(work, 1)
    is_in_mlp = any(p.state is State.QUANTISED and p.name.startswith("mlp.") for p in block.parameters)
    inside = 2 * _inner_bytes(work, block) if is_in_mlp else attention.saved_bytes(work)
    return _streams(work, 2) + inside


def _streams(work: Workload, copies: int) -> int:
    return copies * work.shape.hidden_size * work.residual_bytes


def _unsaved_streams(work: Workload) -> int:
    """The block's input, the residual stream after attention, and where adapters keep copies of it a norm's answer."""
    return _streams(work, 3 if copies_adapter_inputs(work) else 2)


def _inner_bytes(work: Workload, block: Block) -> int:
    return mlp_width(work, block) * mlp_element_bytes(work, block)


def _mlp(work: Workload, block: Block) -> int:
    """The activated gate, the up projection and their product; where both come from one layer (Phi-3), its answer
    instead of the up projection. Of experts first the gathered input; it is there to the end, when beside it are the
    outputs, those by their weights, and the same in the order of the tokens."""
    inner = _inner_bytes(work, block)
    if is_sparse(block):
        gathered = work.shape.num_experts_per_tok * work.shape.hidden_size * mlp_element_bytes(work, block)
        return gathered + max(3 * inner, 3 * gathered)
    held = (4 if attention.is_fused(work) else 3) * inner
    return max(held, *(_at_adapter(work, block, name, matrix) for name, matrix in _adapted_mlp(block).items()), 0)


def _down(work: Workload, block: Block) -> int:
    """The last projection's input; where one projection makes gate and up, a view of the gate keeps both (transformers
    5.23 models/phi3/modeling_phi3.py Phi3MLP.forward)."""
    return _inner_bytes(work, block) * (3 if attention.is_fused(work) else 1)


def _at_adapter(work: Workload, block: Block, module: str, matrix: Held) -> int:
    """An adapted layer's turn in the MLP: the activated gate before the up projection's, the product before the down
    projection's."""
    before = 0 if module.endswith(("gate_proj", "gate_up_proj")) else _inner_bytes(work, block)
    num_inputs = matrix.shape[1]
    narrow = num_inputs * work.matmul_bytes if casts_adapter_inputs(work) else 0
    outputs = _outputs(block, module)
    at_matrices = max(narrow, 2 * outputs * work.adapter_input_bytes)
    return before + _wide_input(work, num_inputs) + outputs * work.compute_bytes + at_matrices


def _unsaved_by_adapters(work: Workload, block: Block) -> int:
    """The most that an adapted layer of the MLP has beside what is kept by then, less what the layers after it keep."""
    if is_sparse(block):
        return 0
    found = [0]
    adapted = _adapted_mlp(block)
    down = {name: matrix for name, matrix in adapted.items() if name.endswith("down_proj")}
    for module, matrix in adapted.items():
        passing = _wide_input(work, matrix.shape[1]) + 2 * _outputs(block, module) * work.adapter_input_bytes
        if module in down:
            product = _inner_bytes(work, block) if copies_adapter_inputs(work) else 0
            found.append(passing + product + _outputs(block, module) * work.compute_bytes)
        elif module.endswith("up_proj"):
            found.append(passing - adapter_bytes(work, down))
    return max(found)


def _wide_input(work: Workload, num_inputs: int) -> int:
    """An adapter's input in the adapter's own dtype (peft 0.21 tuners/tuners_utils.py _cast_input_dtype)."""
    is_cast = casts_adapter_inputs(work) or work.adapter_input_bytes != work.compute_bytes
    return num_inputs * work.dtypes.trained.num_bytes if is_cast else 0


def _adapted_mlp(block: Block) -> dict[str, Held]:
    return {
        name: matrix
        for name, matrix in adapted_modules(block).items()
        if name.startswith("mlp.") and not is_sparse(block)
    }


def _outputs(block: Block, module: str) -> int:
    return next(p.shape[0] for p in block.parameters if p.name == f"{module}.weight")
