"""What the tracer replaces in DeepSpeed, beside DeepSpeed's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

WORLD_SIZE = 4
SHAPES = ((6, 5), (3,), (4, 4))  # 30 and 3 elements do not divide by the ranks


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a coalesced all-gather on the CPU, just come back, of parameters of SHAPES in bf16."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import torch
    from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle, ZeroParamStatus

    def make() -> Any:
        parameters = []
        for shape in SHAPES:
            parameter: Any = torch.nn.Parameter(torch.empty(0, dtype=torch.bfloat16))
            parameter.ds_shape, parameter.ds_numel = torch.Size(shape), torch.Size(shape).numel()
            parameter.ds_tensor = torch.zeros(-(-parameter.ds_numel // WORLD_SIZE), dtype=torch.bfloat16)
            parameter.ds_tensor.ds_numel = parameter.ds_tensor.numel()
            parameter.ds_status = ZeroParamStatus.INFLIGHT
            parameters.append(parameter)
        size = sum(parameter.ds_tensor.ds_numel for parameter in parameters)
        flat = torch.zeros(size * WORLD_SIZE, dtype=torch.bfloat16)
        return AllGatherCoalescedHandle(
            allgather_handle=SimpleNamespace(wait=lambda: None),
            params=parameters,
            partitions=[flat.narrow(0, rank * size, size) for rank in range(WORLD_SIZE)],
            world_size=WORLD_SIZE,
        )

    return make


def test_a_gathered_parameter_is_what_deepspeed_makes_of_it(gathered: Any) -> None:
    from jobs.tracing.zero import wait_for_gathered

    theirs, ours = gathered(), gathered()
    theirs.wait()
    wait_for_gathered(ours)
    assert ours.complete
    for own, other in zip(ours.params, theirs.params, strict=True):
        assert (own.shape, own.dtype, own.ds_status) == (other.shape, other.dtype, other.ds_status)
        assert own.untyped_storage().nbytes() == other.untyped_storage().nbytes() == 2 * own.ds_numel


def test_a_freed_parameter_is_what_deepspeed_leaves_of_it(gathered: Any) -> None:
    from deepspeed.runtime.zero import partition_parameters

    from jobs.tracing.zero import free_param

    theirs, ours = (gathered().params[0] for _ in range(2))
    for parameter, free in ((theirs, partition_parameters.free_param), (ours, free_param)):
        parameter.ds_active_sub_modules = set()
        free(parameter)
    assert (ours.shape, ours.dtype, ours.ds_status) == (theirs.shape, theirs.dtype, theirs.ds_status)


def test_a_leaf_is_told_by_its_flag() -> None:
    import torch
    from deepspeed.utils import set_z3_leaf_modules, z3_leaf_module

    from jobs.tracing.zero import is_leaf

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    set_z3_leaf_modules(model, [torch.nn.Linear])
    modules = list(model.modules())
    assert [is_leaf(module) for module in modules] == [z3_leaf_module(module) for module in modules]
    assert [is_leaf(module) for module in modules] == [False, True, False]


class Module:
    """With parameters that persist, or do not."""

    def __init__(self, *persists: bool) -> None:
        self.parameters = [SimpleNamespace(ds_persist=flag) for flag in persists]


def test_only_modules_with_something_to_release_are_looked_ahead_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.zero import partitioned_param_coordinator

    from jobs.tracing.zero import only_where_any

    monkeypatch.setattr(partitioned_param_coordinator, "iter_params", lambda module, recurse: module.parameters)
    to_release = only_where_any(lambda _coordinator, _module, _step: {7})
    modules = (Module(), Module(True, True), Module(True, False))
    assert [to_release(None, module, 1) for module in modules] == [set(), set(), {7}]
    to_release(None, modules[0], 1).add(3)
    assert to_release(None, modules[0], 1) == {3}  # kept, as DeepSpeed keeps it
    assert to_release(None, modules[0], 2) == set()
