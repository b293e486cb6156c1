"""The chunked loss gives the loss and the gradients of the whole logits, whatever the head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from jobs.chunked_loss import use_chunked_loss
from launcher.spec import CHUNK_TOKENS
from tests.tiny import VOCAB_SIZE, tiny_config

BATCH, LENGTH = 3, 231  # two whole chunks and a part of one
NUM_PROMPT = 17


def make_model(model_type: str = "llama", *, tied: bool = False, adapted: list[str] | None = None) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, tied=tied), attn_implementation="eager")
    if adapted is not None:
        config = LoraConfig(r=4, target_modules=adapted, init_lora_weights=False)
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    return model.train()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(VOCAB_SIZE, (BATCH, LENGTH))
    labels = ids.clone()
    labels[:, :NUM_PROMPT] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def loss_and_gradients(model: Any, **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(**batch(), use_cache=False, **options)["loss"]
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(*, num_items: Any = None, **kind: Any) -> None:
    assert BATCH * LENGTH > 2 * CHUNK_TOKENS
    options = {} if num_items is None else {"num_items_in_batch": num_items}
    expected, gradients = loss_and_gradients(make_model(**kind), **options)
    model = make_model(**kind)
    use_chunked_loss(model)
    found, own_gradients = loss_and_gradients(model, **options)
    assert found == pytest.approx(expected, rel=1e-6)
    assert own_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "mixtral", "qwen3_moe"])
def test_every_kind_of_model(model_type: str) -> None:
    compare(model_type=model_type)


def test_a_tied_head() -> None:
    compare(tied=True)


@pytest.mark.parametrize("adapted", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters(adapted: list[str]) -> None:
    compare(adapted=adapted)


@pytest.mark.parametrize("num_items", [512, torch.tensor(512)])
def test_divided_by_the_items_of_the_whole_step(num_items: Any) -> None:
    compare(num_items=num_items)


def test_logits_without_labels_are_the_models_own() -> None:
    ids = batch()["input_ids"]
    expected = make_model("gemma2")(input_ids=ids).logits
    model = make_model("gemma2")
    use_chunked_loss(model)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_no_tensor_is_as_large_as_the_logits() -> None:
    model = make_model()
    use_chunked_loss(model)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            tensors = [made] if isinstance(made, torch.Tensor) else made if isinstance(made, (tuple, list)) else []
            sizes = [math.prod(t.shape[:-1]) for t in tensors if isinstance(t, torch.Tensor) and t.dim() >= 2
                     and t.shape[-1] == VOCAB_SIZE]  # fmt: skip
            largest = max([largest, *sizes])
            return made

    with Watch():
        loss = model(**batch(), use_cache=False)["loss"]
        loss.backward()
    assert isinstance(model.lm_head, nn.Linear)
    assert largest == CHUNK_TOKENS
