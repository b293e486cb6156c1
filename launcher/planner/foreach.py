"""The temporaries of an optimizer that steps all its tensors at once."""

from __future__ import annotations

from launcher.planner import optimizer
from launcher.planner.terms import term
from launcher.planner.types import Phase, Term, TermKind
from launcher.planner.workload import Workload


def foreach_term(work: Workload, numel: int) -> tuple[Term, ...]:
    """Nothing with the fused kernel; numel: the elements that one rank steps."""
    if not work.steps_by_foreach:
        return ()
    dtype = work.dtypes.optimizer_states
    return term(
        "optimizer temporaries",
        TermKind.WORKSPACES,
        optimizer.foreach_bytes(work.spec.train.optimizer, numel, dtype),
        (Phase.OPTIMIZER,),
        formula=f"roots of second moments, {numel:,} elements x {dtype.num_bytes} B",
        source="torch 2.13 optim/adam.py _multi_tensor_adam",
    )
