"""ModelShape: a model's widths and every one of its parameters, by name and shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a parameter does, where that decides how it is quantised, sharded, adapted or computed with.

    LINEAR is the weight of an nn.Linear inside a block; the output head is HEAD. EXPERT is a stack of expert
    matrices held as one 3-D parameter. ADAPTER is what LoRA adds.
    """

    EMBEDDING = "embedding"
    LINEAR = "linear"
    BIAS = "bias"
    EXPERT = "expert"
    ROUTER = "router"
    NORM = "norm"
    HEAD = "head"
    ADAPTER = "adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter as named_parameters() of the library that makes it names it. layer is None outside the blocks."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    role: Role

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A causal language model's widths and parameters, the latter in the order of model.named_parameters().

    intermediate_size is the width of a dense MLP, moe_intermediate_size that of one expert. The counts of experts
    are 0 for a dense model. sliding_window is in tokens, and None where no layer uses one. Tied embeddings stand
    once in parameters, as the embedding.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    sliding_window: int | None
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None
    supports_sdpa: bool
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    parameters: tuple[Parameter, ...]

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(parameter.num_elements for parameter in self.parameters)

    @property
    def linears(self) -> tuple[Parameter, ...]:
        """The weights of the linear layers inside the blocks: neither the head nor experts nor routers."""
        return self.with_role(Role.LINEAR)

    @property
    def head(self) -> Parameter:
        """The output head's weight; where embeddings are tied, the embedding under the head's name."""
        return Parameter(name="lm_head.weight", shape=(self.vocab_size, self.hidden_size), layer=None, role=Role.HEAD)

    def with_role(self, *roles: Role) -> tuple[Parameter, ...]:
        """The parameters that have one of these roles."""
        return tuple(parameter for parameter in self.parameters if parameter.role in roles)
