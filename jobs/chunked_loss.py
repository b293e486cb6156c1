"""Cross entropy straight from the last hidden states, some tokens at a time, so that the logits never exist as a whole.

The logits of each chunk are made, reduced to a loss and dropped; the backward pass makes them once more. It is the
model's own head that makes them, adapters, soft-capping and automatic casting included, so the loss and its gradients
are those of the whole logits. torch 2.13's linear_cross_entropy takes a bare weight and returns half precision.

All chunks run inside one call of the head: FSDP2 and ZeRO-3 gather its weight when a module is called, and again when
the gradient of what it returned arrives, which is when the chunks are made again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from jobs.prompt import IGNORED
from launcher.spec import CHUNK_TOKENS


def use_chunked_loss(model: Any) -> None:
    """Let a causal language model answer labels with their loss alone; without labels it gives logits as before.

    model: transformers' own, or peft's around it with its adapters attached.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    cap = getattr(causal.config, "final_logit_softcapping", None)
    head.forward = _or_loss(head.forward, cap)
    causal.forward = _answering_with_loss(causal, head)


def _or_loss(to_logits: Any, cap: float | None) -> Any:
    """A head's forward that, given targets, returns their summed loss instead of logits."""

    @functools.wraps(to_logits)
    def forward(hidden: torch.Tensor, *args: Any, targets: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        if targets is None:
            logits: torch.Tensor = to_logits(hidden, *args, **kwargs)
            return logits
        return summed_loss(to_logits, hidden.flatten(0, 1), targets.flatten(), cap=cap)

    return forward


def _answering_with_loss(causal: Any, head: nn.Module) -> Any:
    """The model's forward that hands the labels to its head."""
    to_logits = causal.forward

    @functools.wraps(to_logits)
    def forward(
        *args: Any, labels: torch.Tensor | None = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        if labels is None:
            output: CausalLMOutputWithPast = to_logits(*args, **kwargs)
            return output
        hidden = causal.model(*args, **kwargs).last_hidden_state
        targets = functional.pad(labels[..., 1:], (0, 1), value=IGNORED)  # each position answers for the next token
        num_items = targets.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=head(hidden, targets=targets) / num_items)

    return forward


def summed_loss(to_logits: Any, hidden: torch.Tensor, targets: torch.Tensor, *, cap: float | None) -> torch.Tensor:
    """The cross entropy of all targets together, in fp32. hidden: (tokens, width); targets: (tokens,)."""

    def loss_of(chunk: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = to_logits(chunk)
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return functional.cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")

    chunks = zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    losses = [checkpoint(loss_of, chunk, wanted, use_reentrant=False) for chunk, wanted in chunks]
    return torch.stack(losses).sum()
