"""Which part of the job a rank is in, told by the job itself to whoever listens.

What measures a run and what traces it both listen here, so that a phase begins at the same line of code for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from launcher.planner.types import Phase

Listener = Callable[[Phase, int], None]


class Phases:
    """The phase of one rank and the optimizer step it belongs to, counted from 1; 0 before the first."""

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.step = 0
        self._listeners: list[Listener] = []

    @property
    def place(self) -> dict[str, Any]:
        """Where the job is, as a note about a failure has it."""
        return {"phase": "" if self.phase is None else self.phase.value, "step": self.step or None}

    def listen(self, listener: Listener) -> None:
        """Call `listener(phase, step)` whenever a phase begins."""
        self._listeners.append(listener)

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Begin a phase, of the same step where none is given; nothing where it has begun already."""
        step = self.step if step is None else step
        if (phase, step) == (self.phase, self.step):
            return
        self.phase, self.step = phase, step
        for listener in self._listeners:
            listener(phase, step)

    def watch_model(self, model: nn.Module) -> None:
        """Begin the loss where the blocks have returned their hidden states: the head belongs to the loss."""
        decoder_of(model).register_forward_hook(self._begin_loss)

    def _begin_loss(self, *_: Any) -> None:
        if self.phase is Phase.FORWARD:  # neither in an evaluation nor in a recomputation
            self.enter(Phase.LOSS)

    def watch_engine(self, engine: Any) -> None:
        """Begin the optimizer's phase where DeepSpeed steps, which is inside accelerate's backward."""
        step = engine.step

        def marked_step(*args: Any, **kwargs: Any) -> Any:
            self.enter(Phase.OPTIMIZER)
            return step(*args, **kwargs)

        engine.step = marked_step


def decoder_of(model: nn.Module) -> nn.Module:
    """The part of a causal language model below its head, through adapters."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    decoder = model.base_model  # transformers: the module named by base_model_prefix
    assert isinstance(decoder, nn.Module)
    assert decoder is not model
    return decoder
