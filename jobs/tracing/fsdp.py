"""FSDP2 on fake tensors (torch 2.13, accelerate 1.15). It runs as it is; only the mesh under it must be real.

A DeviceMesh finds its own coordinates by the values of a small tensor of ranks, so whatever a mesh computes with it
happens outside the fake mode. None of it is on the device.

DTensor learns the shape of a result by running the operation once on whole fake tensors of its own, on meta in a run:
that is not recorded. For an operation on lists, as an optimizer's, it then asks for every tensor of the list whether
any tensor of any list is a strided shard: asked once here, for it takes minutes on a large model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_init
from torch.distributed.tensor import _sharding_prop
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import _disable_current_modes

from jobs.tracing.recorder import Recorder

FACTORY = "init_device_mesh"
IMPORTED_BY = (  # by name
    "torch.distributed",
    "torch.distributed.device_mesh",
    "torch.distributed.tensor",
    "torch.distributed.fsdp._fully_shard._fsdp_init",
)
METHODS = ("__init__", "__getitem__", "_flatten", "_unflatten", "get_coordinate", "get_local_rank")


def install(recorder: Callable[[], Recorder]) -> None:
    """Let meshes be made of real tensors, and leave out what a run does on meta."""
    _make_real_meshes()
    original = ShardingPropagator._propagate_tensor_meta_non_cached

    def unrecorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with recorder().paused():
            return original(self, *args, **kwargs)

    ShardingPropagator._propagate_tensor_meta_non_cached = unrecorded  # type: ignore[method-assign]
    _ask_once_for_strided_shards()
    _move_fake_tensors()


def _move_fake_tensors() -> None:
    """What waits in host RAM to be sharded is moved by its data alone, and a fake tensor keeps its device in Python."""
    original = _fsdp_init._move_states_to_device

    def move(params: list[Any], buffers: list[Any], device: torch.device) -> None:
        original(params, buffers, device)
        for tensor in (*params, *buffers):
            if isinstance(tensor, FakeTensor) and not tensor.is_meta:
                tensor.fake_device = device

    _fsdp_init._move_states_to_device = move


def _ask_once_for_strided_shards() -> None:
    """_propagate_use_strided_shard_flag changes nothing where there is none (torch/distributed/tensor/
    _sharding_prop.py), as under FSDP2 alone."""
    original = _sharding_prop._propagate_use_strided_shard_flag
    asked: tuple[Any, bool] = (None, False)

    def propagate(op_strategy: Any, op_schema: Any) -> None:
        nonlocal asked
        if asked[0] is not op_schema:
            strided = any(isinstance(part, _StridedShard) for spec in op_schema.args_spec for part in spec.placements)
            asked = (op_schema, strided)
        if asked[1]:
            original(op_strategy, op_schema)

    _sharding_prop._propagate_use_strided_shard_flag = propagate


def _make_real_meshes() -> None:
    for name in METHODS:
        assert hasattr(device_mesh.DeviceMesh, name), f"DeviceMesh.{name} is gone"
        setattr(device_mesh.DeviceMesh, name, _outside(getattr(device_mesh.DeviceMesh, name)))
    factory = _outside(getattr(device_mesh, FACTORY))
    for module in map(import_module, IMPORTED_BY):
        assert hasattr(module, FACTORY), f"{module.__name__} makes its mesh in another way"
        setattr(module, FACTORY, factory)


def _outside(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call
