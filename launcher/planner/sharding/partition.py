"""What ZeRO-2 and ZeRO-3 share: an optimizer that steps flat partitions of what a rank owns.

Source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py and stage3.py; what differs between them is how many elements.
"""

from __future__ import annotations

from launcher.planner import optimizer
from launcher.planner.foreach import foreach_term
from launcher.planner.outside import managed_term
from launcher.planner.terms import FROM_FIRST_STEP, FROM_WRAP, term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload
from launcher.spec import MethodKind

BEFORE_STATES = "gradients, for their norm or before they are cast"
NORM_BYTES = 8  # deepspeed 0.19.8 runtime/utils.py get_norm_dtype: fp64


def master_weights(work: Workload, numel: int, source: str) -> tuple[Term, ...]:
    """The partitions that the optimizer steps: copies even where the weights are fp32 themselves."""
    width = work.stepped_dtype.num_bytes
    return term(
        "master weights, partition",
        TermKind.MASTER_WEIGHTS,
        numel * width,
        FROM_WRAP,
        formula=f"{numel:,} elements x {width} B",
        source=source,
    )


def optimizer_states(work: Workload, numel: int, num_at_a_time: int) -> tuple[Term, ...]:
    """Moments of a rank's elements, and the temporaries of stepping so many of them at a time."""
    kind = work.spec.train.optimizer
    return (
        term(
            "optimizer states, partition",
            TermKind.OPTIMIZER_STATES,
            optimizer.states_bytes(kind, [(numel, 1)], work.stepped_dtype),
            FROM_FIRST_STEP,
            formula=f"2 moments x {numel:,} elements ({kind})",
            source=optimizer.SOURCES[kind],
        )
        + managed_term(work, ((numel, 1),))
        + foreach_term(work, num_at_a_time)
    )


def held_by_graph(work: Workload) -> tuple[Term, ...]:
    """accelerate steps inside its backward(), while the loss still holds the graph. Where blocks over a frozen
    embedding are checkpointed, that has the embedding's output, made a leaf so that blocks need gradients, and its
    gradient."""
    if not work.checkpointing or work.spec.method.kind is MethodKind.FULL:
        return ()
    rate = 2 * work.shape.hidden_size * work.residual_bytes
    return term(
        "embedding's output and its gradient",
        TermKind.ACTIVATIONS,
        rate * work.tokens,
        (Phase.OPTIMIZER,),
        formula=f"{rate:,} B x {work.tokens:,} tokens",
        source="peft 0.21 peft_model.py _prepare_model_for_gradient_checkpointing; accelerate 1.15 utils/deepspeed.py",
    )


def stepped_gradients(
    work: Workload, num_at_a_time: int, largest_piece: int, source: str, *, states_bytes: int = 0
) -> tuple[Term, ...]:
    """Beside the gradients themselves: the norm is taken of one at a time in fp64; then those that are stepped together
    are flattened, and the flat copy cast to the dtype of the step.

    largest_piece: elements of the largest single gradient that a rank has.
    states_bytes: optimizer states that the first step makes when the cast copy alone is left, in the room of the rest.
    """
    width, stepped = work.gradient_bytes, work.stepped_dtype.num_bytes
    rate = width + (stepped if width != stepped else 0)
    whole = max(num_at_a_time * rate, largest_piece * NORM_BYTES)
    beside_states = max(num_at_a_time * stepped, whole - states_bytes)
    formula = (
        f"the larger of {num_at_a_time:,} elements x {rate} B and {largest_piece:,} of the largest gradient"
        f" x {NORM_BYTES} B"
    )
    return term(
        "gradients, for their norm or flat and fp32",
        TermKind.GRADIENTS,
        beside_states,
        (Phase.OPTIMIZER,),
        formula=formula if beside_states == whole else f"{num_at_a_time:,} elements x {stepped} B",
        source=source,
    ) + term(
        BEFORE_STATES,
        TermKind.GRADIENTS,
        whole - beside_states,
        (Phase.OPTIMIZER,),
        formula=f"{formula}, less {beside_states:,} B",
        source=source,
    )
