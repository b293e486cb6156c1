"""A job tells which phase it is in, once for each beginning."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import LlamaForCausalLM

from jobs.phases import Phases, decoder_of
from launcher.planner.types import Phase
from tests.tiny import tiny_config


def listened(phases: Phases) -> list[tuple[Phase, int]]:
    heard: list[tuple[Phase, int]] = []
    phases.listen(lambda phase, step: heard.append((phase, step)))
    return heard


def test_a_phase_begins_once() -> None:
    phases = Phases()
    heard = listened(phases)
    phases.enter(Phase.FORWARD, 1)
    phases.enter(Phase.FORWARD, 1)
    phases.enter(Phase.BACKWARD)
    phases.enter(Phase.FORWARD, 1)  # the next micro batch
    phases.enter(Phase.FORWARD, 2)
    assert heard == [(Phase.FORWARD, 1), (Phase.BACKWARD, 1), (Phase.FORWARD, 1), (Phase.FORWARD, 2)]


def test_the_loss_begins_below_the_head_and_only_in_a_forward_pass() -> None:
    model = LlamaForCausalLM(tiny_config())
    phases = Phases()
    phases.watch_model(model)
    at_head: list[Phase | None] = []
    model.lm_head.register_forward_pre_hook(lambda *_: at_head.append(phases.phase))
    tokens = torch.ones(1, 4, dtype=torch.long)
    phases.enter(Phase.EVALUATION, 0)
    model(input_ids=tokens)
    phases.enter(Phase.FORWARD, 1)
    model(input_ids=tokens)
    assert at_head == [Phase.EVALUATION, Phase.LOSS]


def test_the_decoder_is_found_through_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM(tiny_config())
    assert decoder_of(model) is model.model
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert decoder_of(adapted) is model.model


def test_the_step_of_an_engine_is_the_optimizers_phase() -> None:
    phases = Phases()
    engine = SimpleNamespace(step=lambda factor: (phases.phase, 2 * factor))
    phases.watch_engine(engine)
    phases.enter(Phase.BACKWARD, 3)
    assert engine.step(factor=4) == (Phase.OPTIMIZER, 8)
    assert phases.step == 3


def test_the_place_of_a_failure() -> None:
    phases = Phases()
    assert phases.place == {"phase": "", "step": None}
    phases.enter(Phase.LOAD)
    assert phases.place == {"phase": "load", "step": None}
    phases.enter(Phase.BACKWARD, 13)
    assert phases.place == {"phase": "backward", "step": 13}
