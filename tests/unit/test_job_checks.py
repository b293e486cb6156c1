"""The job's checks of itself must fail where the job is wrong; each wrong job here once trained with exit code 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jobs import checks
from launcher.precision import dtypes
from launcher.spec import Dtype, JobSpec, Optimizer, Precision, ShardKind
from tests.launching import make_spec


def spec_of(shard: ShardKind, precision: Precision = Precision.FP32) -> JobSpec:
    spec = make_spec()
    return dataclasses.replace(
        spec,
        shard=dataclasses.replace(spec.shard, kind=shard),
        train=dataclasses.replace(spec.train, precision=precision),
    )


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    """One frozen and one trained layer: 8 and 16 elements."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 4, bias=False)).to(dtype)
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("shard", ShardKind)
def test_a_model_in_no_wrapper_is_refused(shard: ShardKind) -> None:
    with pytest.raises(checks.CheckFailed, match=f"shard={shard} must wrap the model in .*, and it is in none"):
        checks.wrapper(model_of(), spec_of(shard))


def test_ranks_that_do_not_know_each_other_are_refused() -> None:
    with pytest.raises(checks.CheckFailed, match="the plan is for 2 ranks, torch sees 1 and the Trainer 1"):
        checks.world_size(1, spec_of(ShardKind.DDP))


def test_elements_are_counted_by_kind() -> None:
    groups = checks.parameter_groups(model_of())
    assert groups == {
        "frozen": checks.Group(num_elements=8, num_local_elements=8, dtypes={"float32": 8}),
        "trained": checks.Group(num_elements=16, num_local_elements=16, dtypes={"float32": 16}),
    }


@pytest.mark.parametrize("shard", [ShardKind.FSDP, ShardKind.ZERO3])
def test_whole_parameters_are_not_sharded_ones(shard: ShardKind) -> None:
    model = model_of()
    with pytest.raises(checks.CheckFailed, match=r"2 parameters are not sharded, among them 0\.weight"):
        checks.sharded(model, checks.parameter_groups(model), spec_of(shard))


def test_replicas_marked_as_shards_are_found_by_their_size() -> None:
    model = model_of()
    for parameter in model.parameters():
        parameter.ds_tensor = parameter.data.repeat(50, 1)
        parameter.ds_numel = parameter.numel() * 50
    with pytest.raises(checks.CheckFailed, match="this rank holds 400 of 400 frozen elements: not sharded"):
        checks.sharded(model, checks.parameter_groups(model), spec_of(ShardKind.ZERO3))


def test_rows_that_do_not_divide_are_sharded_all_the_same() -> None:
    """16 rows on 3 ranks: 6 on the first, which is more than a third of all by more than padding."""
    parameter = torch.nn.Parameter(torch.empty(16, 4))
    assert checks._largest_share(parameter, 3) == 6 * 4
    assert checks._largest_share(parameter, 64) == 4


@pytest.mark.parametrize("precision", [Precision.BF16_MIXED, Precision.FP32])
def test_a_dtype_that_was_not_planned_is_refused(precision: Precision) -> None:
    """Loaded in bf16 and left so, DDP trains without a master; loaded in fp32, nothing is saved of the memory."""
    spec = spec_of(ShardKind.DDP, precision)
    groups = checks.parameter_groups(model_of(torch.float16))
    with pytest.raises(checks.CheckFailed, match=r"parameters are \['float16'\], and "):
        checks.parameter_dtypes(groups, spec)


def test_gradients_in_another_dtype_are_refused() -> None:
    model = model_of(torch.bfloat16)
    model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
    assert dtypes(spec_of(ShardKind.DDP, Precision.BF16_MIXED)).gradients is Dtype.FLOAT32
    with pytest.raises(checks.CheckFailed, match=r"gradients are \['bfloat16'\], and float32 was planned"):
        checks.gradient_dtypes(model, spec_of(ShardKind.DDP, Precision.BF16_MIXED))


def test_optimizer_states_are_told_and_held_to_the_plan() -> None:
    model, spec = model_of(), spec_of(ShardKind.DDP)
    optimizer = torch.optim.AdamW(model[1].parameters())
    with pytest.raises(checks.CheckFailed, match=r"optimizer states are \{\}, and float32 was planned"):
        checks.optimizer_states(model, optimizer, spec)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert checks.optimizer_states(model, optimizer, spec) == {"dtypes": ["float32"], "num_local_elements": 32}
    eight_bit = dataclasses.replace(spec, train=dataclasses.replace(spec.train, optimizer=Optimizer.ADAMW_8BIT))
    assert checks.optimizer_states(model, optimizer, eight_bit)["dtypes"] == ["float32"]


def test_replicated_optimizer_states_are_refused() -> None:
    checks.optimizer_sharded(2_000_000, 1_000_000, spec_of(ShardKind.DDP))
    checks.optimizer_sharded(1_000_000, 1_000_000, spec_of(ShardKind.ZERO2))
    with pytest.raises(checks.CheckFailed, match="not sharded"):
        checks.optimizer_sharded(2_000_000, 1_000_000, spec_of(ShardKind.ZERO2))


def test_ranks_that_train_the_same_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(ShardKind.DDP)
    monkeypatch.setattr(checks, "gather", lambda rows: [rows, rows])
    with pytest.raises(checks.CheckFailed, match="in one step 2 ranks took 6 rows, of which 3 differ"):
        checks.distinct_rows([1, 2, 3], num_rows=100, spec=spec)
    monkeypatch.setattr(checks, "gather", lambda rows: [rows, [4, 5, 6]])
    found = checks.distinct_rows([1, 2, 3], num_rows=100, spec=spec)
    assert found == {"first_step_rows": 6, "first_step_distinct_rows": 6}
    monkeypatch.setattr(checks, "gather", lambda rows: [rows, [2, 3, 4]])
    checks.distinct_rows([1, 2, 3], num_rows=4, spec=spec)  # more places than rows: some must come twice


def test_a_save_that_wrote_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(checks.CheckFailed, match="holds 0 elements in 0 tensors, and 16 were trained"):
        checks.saved_tensors(tmp_path, 16)
    save_file({"a": torch.ones(2, 4), "b": torch.ones(8)}, tmp_path / "model.safetensors")
    assert checks.saved_tensors(tmp_path, 16) == {"saved_tensors": 2, "saved_elements": 16}
    with pytest.raises(checks.CheckFailed, match="holds 16 elements in 2 tensors, and 17 were trained"):
        checks.saved_tensors(tmp_path, 17)
