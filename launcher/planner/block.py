"""What one transformer block keeps of a token for its backward pass, part by part, and what that pass needs besides.

Counted from transformers 5.23 models/llama/modeling_llama.py (the others share its parts), the tensors that torch
2.13's autograd saves (tools/autograd/derivatives.yaml) and peft 0.21 tuners/lora/layer.py. Autograd saves what
a gradient will need: a linear layer its input only where its weight is trained; a product each factor whose partner
needs a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from launcher.models import Role
from launcher.planner import attention
from launcher.planner.inventory import Block, Held, State
from launcher.planner.moments import Part
from launcher.planner.recompute import keeps_inputs
from launcher.planner.workload import Workload
from launcher.spec import MethodKind

FP32 = 4
INDEX_BYTES = 8
ADAPTER_MARK = ".lora_A."
FIRST_NORM = ("input_layernorm",)
HEAD_NORMS = ("self_attn.",)
OTHER_NORMS = ("post_", "pre_")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBytes:
    """Bytes a token. first_norm, attention and mlp are saved, with the adapters and norms of each; *_working is what
    the backward pass of that part needs on top at its highest point; forward_* what the forward pass needs where
    nothing is kept: at most, in attention, and in the last projection."""

    first_norm: int
    attention: int
    mlp: int
    attention_working: int
    mlp_working: int
    end_working: int

    @property
    def saved(self) -> int:
        """Everything kept from the forward to the backward pass."""
        return self.first_norm + self.attention + self.mlp

    def backward_peak(self, part: Part) -> int:
        """In the MLP all is still saved; in attention the MLP's is gone; at the end only the first norm's is left."""
        match part:
            case Part.MLP:
                return self.saved + self.mlp_working
            case Part.ATTENTION:
                return self.first_norm + self.attention + self.attention_working
            case Part.END:
                return self.first_norm + self.end_working


@lru_cache(maxsize=32)
def block_bytes(work: Workload, block: Block) -> BlockBytes:
    """The bytes of one kind of block."""
    linears = {p.name.removesuffix(".weight"): p for p in block.parameters if p.role is Role.LINEAR}
    adapted = adapted_modules(block)
    in_attention = {name: matrix for name, matrix in adapted.items() if name.startswith("self_attn.")}
    in_mlp = {name: m for name, m in adapted.items() if name.startswith("mlp.") and "experts" not in name}
    norms = [p for p in block.parameters if p.role is Role.NORM]
    hidden = work.shape.hidden_size
    residual = hidden * work.residual_bytes
    return BlockBytes(
        first_norm=norm_bytes(work, norms, FIRST_NORM),
        attention=norm_bytes(work, norms, HEAD_NORMS)
        + attention.saved_bytes(work)
        + _attention_inputs(work, linears)
        + adapter_bytes(work, in_attention),
        mlp=norm_bytes(work, norms, OTHER_NORMS) + _mlp_saved(work, block, linears) + adapter_bytes(work, in_mlp),
        attention_working=residual + attention.working_bytes(work),
        end_working=residual + 2 * hidden * FP32,
        mlp_working=residual + (hidden * work.compute_bytes if _casts_inputs(work) else 0) + _mlp_working(work, block),
    )


def norm_bytes(work: Workload, norms: list[Held], prefixes: tuple[str, ...]) -> int:
    """RMSNorm: the input in fp32 (a copy unless it is fp32 already), the inverse root, and the normalised input where
    the norm's weight is trained (LlamaRMSNorm.forward). Those on queries and keys run once a head."""
    total = 0
    for norm in (p for p in norms if p.name.startswith(prefixes)):
        vectors, width = _norm_vectors(work, norm), norm.shape[0]
        stream = work.compute_bytes if norm.name.startswith("self_attn.") else work.residual_bytes
        normalised = width * stream if norm.state.is_trained else 0
        total += vectors * (width * FP32 + FP32 + normalised)
    return total


def _norm_vectors(work: Workload, norm: Held) -> int:
    if norm.name.startswith("self_attn.q_norm"):
        return work.shape.num_attention_heads
    return work.shape.num_key_value_heads if norm.name.startswith("self_attn.k_norm") else 1


def _casts_inputs(work: Workload) -> bool:
    """Whether each linear layer makes its own copy of a shared input in the compute dtype: under autocast, when the
    input is fp32."""
    return work.residual_bytes != work.compute_bytes


def _input_copies(work: Workload, layers: list[Held]) -> int:
    """Bytes of input kept for linear layers that read the same tensor: where one is trained, or keeps it anyway."""
    trained = [layer for layer in layers if layer.state is State.TRAINED]
    if not trained:
        quantised = [layer for layer in layers if layer.state is State.QUANTISED]
        return quantised[0].shape[1] * work.compute_bytes if quantised and keeps_inputs(work) else 0
    copies = len(trained) if _casts_inputs(work) else 1
    return copies * trained[0].shape[1] * work.compute_bytes


def _attention_inputs(work: Workload, linears: dict[str, Held]) -> int:
    """What q, k, v keep as their input, and the output projection where attention has not saved it already."""
    readers = [p for name, p in linears.items() if name.startswith("self_attn.") and not name.endswith("o_proj")]
    kept = _input_copies(work, readers)
    if attention.output_is_copied(work):
        kept += _input_copies(work, [p for name, p in linears.items() if name.endswith("o_proj")])
    return kept


@lru_cache(maxsize=64)
def is_sparse(block: Block) -> bool:
    """Whether the MLP is a mixture of experts."""
    return any(p.role is Role.EXPERT for p in block.parameters)


def mlp_width(work: Workload, block: Block) -> int:
    """Intermediate elements a token: in a mixture of experts, over the experts that it visits."""
    if is_sparse(block):
        return work.shape.num_experts_per_tok * work.shape.moe_intermediate_size
    return work.shape.intermediate_size


def _mlp_saved(work: Workload, block: Block, linears: dict[str, Held]) -> int:
    """The gate before and after its activation, the up projection, and the inputs of what is trained."""
    kept = 3 * mlp_width(work, block) * mlp_element_bytes(work, block)
    if is_sparse(block):
        return kept + _expert_extra(work, block)
    readers = [p for name, p in linears.items() if name.startswith("mlp.") and not name.endswith("down_proj")]
    down = [p for name, p in linears.items() if name.endswith("mlp.down_proj")]
    return kept + _input_copies(work, readers) + _input_copies(work, down)


def _mlp_working(work: Workload, block: Block) -> int:
    """The gradients around gate * up: incoming, and of both factors; where the product itself was kept, for a trained
    or adapted down projection, it is gone by then. An adapter in fp32 under autocast has its input's gradient in the
    compute dtype, in fp32 and in the compute dtype again, while the product is still there. Adapted experts have their
    weights' gradient first, when there is but the incoming one beside what is saved."""
    width = mlp_element_bytes(work, block)
    if has_adapted_experts(block):
        return mlp_width(work, block) * width
    down = [p for p in block.parameters if ".down_proj" in p.name]
    kept = any(p.state.is_trained for p in down)
    gradients = (2 if kept else 3) * width
    if casts_adapter_inputs(work) and any(p.state is State.ADAPTER for p in down):
        gradients = max(gradients, 2 * width + FP32)
    return mlp_width(work, block) * gradients


def _expert_extra(work: Workload, block: Block) -> int:
    """For each expert a token visits: its gathered input and the down projection's input where experts are trained or
    adapted, the output that the routing weight multiplies, four int64 indices and two fp32 weights; once a token the
    router's softmax and normaliser in fp32, and its input where it is trained
    (transformers 5.23 integrations/moe.py and models/mixtral/modeling_mixtral.py)."""
    shape, width = work.shape, work.expert_bytes
    visits = shape.num_experts_per_tok
    trained = any(p.role is Role.EXPERT and p.state is State.TRAINED for p in block.parameters)
    trained = trained or has_adapted_experts(block)
    inputs = visits * (shape.hidden_size + shape.moe_intermediate_size) * width if trained else 0
    outputs = visits * shape.hidden_size * width
    routed = any(p.role is Role.ROUTER and p.state is State.TRAINED for p in block.parameters)
    router = shape.hidden_size * width if routed else 0
    return inputs + outputs + router + visits * (4 * INDEX_BYTES + 2 * FP32) + (shape.num_experts + 1) * FP32


@lru_cache(maxsize=64)
def has_adapted_experts(block: Block) -> bool:
    """Whether LoRA is on the stacked experts, whose whole weights then have a gradient."""
    return any(p.state is State.ADAPTER and p.name.startswith("mlp.experts.") for p in block.parameters)


def mlp_element_bytes(work: Workload, block: Block) -> int:
    """Bytes of one activation inside the MLP."""
    return work.expert_bytes if is_sparse(block) else work.compute_bytes


def adapted_modules(block: Block) -> dict[str, Held]:
    """The modules that LoRA adapts, with their A matrices (rank, inputs)."""
    return {
        p.name.partition(ADAPTER_MARK)[0]: p
        for p in block.parameters
        if p.role is Role.ADAPTER and ADAPTER_MARK in p.name
    }


def adapter_bytes(work: Workload, adapted: dict[str, Held]) -> int:
    """LoRA's extra saved inputs: for A its input, for B the output of A.

    Adapters in fp32 under autocast cast the input first, so each keeps a copy of its own in the compute dtype; on CUDA
    those of a quantised layer leave that to autocast, which has nothing to cast. Without autocast the copy is in their
    own dtype. Adapters in the dtype of their input keep the input itself, which the layers of one group share. With
    dropout each keeps its own dropped-out copy and the mask (peft 0.21 tuners/lora/layer.py Linear.forward, bnb.py).
    Those of stacked experts change the weights instead, and keep no input (launcher/planner/experts.py).
    """
    width = work.adapter_input_bytes
    own_copy = copies_adapter_inputs(work)
    mask = _dropout_mask_bytes(work) if work.spec.method.dropout else 0
    shared: set[str] = set()
    total = 0
    for module, matrix in adapted.items():
        rank, num_inputs = matrix.shape
        total += rank * width
        group = _input_group(module)
        if own_copy:
            total += num_inputs * (width + mask)
        elif group not in shared and not _is_saved_anyway(work, group):
            total += num_inputs * width
        shared.add(group)
    return total


def copies_adapter_inputs(work: Workload) -> bool:
    """Whether each adapter keeps a copy of its input, and not the input itself."""
    is_cast = casts_adapter_inputs(work) or work.adapter_input_bytes != work.compute_bytes
    return is_cast or bool(work.spec.method.dropout)


def casts_adapter_inputs(work: Workload) -> bool:
    """Whether each adapter casts its input to fp32 before autocast casts it back.

    Those of quantised layers only where autocast is not on, and they ask for CUDA's, whatever the device (peft 0.21
    tuners/lora/bnb.py: torch.is_autocast_enabled()): on a CPU they cast.
    """
    return work.autocasts_weights and (work.spec.method.kind is not MethodKind.QLORA or not work.on_cuda)


def _dropout_mask_bytes(work: Workload) -> int:
    """CUDA keeps which elements stayed, as booleans; a CPU keeps the factors, in the dtype of the input (torch 2.13
    aten/src/ATen/native/Dropout.cpp)."""
    if work.on_cuda:
        return 1
    return FP32 if work.autocasts_weights else work.compute_bytes


def _input_group(module: str) -> str:
    """Which tensor a module reads."""
    if module.endswith(("q_proj", "k_proj", "v_proj", "qkv_proj")):
        return "attention input"
    if module.endswith(("gate_proj", "up_proj", "gate_up_proj")):
        return "mlp input"
    return module.rsplit(".", 1)[-1]


def _is_saved_anyway(work: Workload, group: str) -> bool:
    """Whether the attention kernel keeps the tensor already, or the layer that is adapted."""
    return keeps_inputs(work) or (group == "o_proj" and not attention.output_is_copied(work))
