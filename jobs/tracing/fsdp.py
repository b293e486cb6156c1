"""FSDP2 on fake tensors (torch 2.13, accelerate 1.15). It runs as it is; only the mesh under it must be real.

A DeviceMesh finds its own coordinates by the values of a small tensor of ranks, so whatever a mesh computes with it
happens outside the fake mode. None of it is on the device.

DTensor learns the shape of a result by running the operation once on whole fake tensors of its own, on meta in a run:
that is not recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch.distributed import device_mesh
from torch.distributed.tensor._sharding_prop import ShardingPropagator
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
