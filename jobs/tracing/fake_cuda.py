"""Fake tensors of device cuda, and autograd for them, in a process without a CUDA driver.

Two things are missing there (torch 2.13, with a CPU build and with a CUDA build that sees no device):

1. A device guard. c10's registry has none for CUDA (CPU build), or one that counts no devices. torch installs its own
   no-op guard in that case, torch._C._ensureCUDADeviceGuardSet, but only over a guard that counts zero: so one that
   counts zero is put there first.
2. Hooks. The autograd engine asks CUDAHooksInterface whether CUDA is built and has a primary context on a device
   before it runs a backward pass. The CPU build's answers are copied with these two replaced.

Nothing is called on a device afterwards: fake tensors have no data. selftest.py notices when the layout changes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

CUDA = 1  # c10::DeviceType::CUDA
NUM_DEVICE_TYPES = 22  # c10::COMPILE_TIME_MAX_DEVICE_TYPES
REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
GET_HOOKS = "_ZN2at6detail12getCUDAHooksEv"
# Slots of CUDAHooksInterface's vtable after its two destructors: isBuilt, isAvailable, hasPrimaryContext.
IS_BUILT, HAS_PRIMARY_CONTEXT = 2, 4
NUM_SLOTS = 96  # more than the interface has; copied, not called
RTTI = 2  # words before a vtable's first slot
WORD = ctypes.sizeof(ctypes.c_void_p)

_kept_alive: list[Any] = []
_zero = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(lambda _self: 0)
_true = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(lambda _self: True)
_false = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda _self, _index: False)


def install() -> None:
    """Make fake CUDA tensors and their gradients work. Not in a process that sees a GPU."""
    assert not torch.cuda.is_available(), "a trace runs where no GPU is visible: CUDA_VISIBLE_DEVICES must be empty"
    libraries = Path(torch.__file__).parent / "lib"
    _set_guard(ctypes.CDLL(str(libraries / "libc10.so")))
    _set_hooks(ctypes.CDLL(str(libraries / "libtorch_cpu.so")))
    # Backward passes run in the calling thread: the engine's device threads would ask for a real device.
    torch.autograd.set_multithreading_enabled(False)


def _set_guard(c10: ctypes.CDLL) -> None:
    registry = (ctypes.c_void_p * NUM_DEVICE_TYPES).in_dll(c10, REGISTRY)
    if not registry[CUDA]:
        vtable = (ctypes.c_void_p * (RTTI + 64))(*([_address(_zero)] * (RTTI + 64)))
        guard = (ctypes.c_void_p * 2)(ctypes.addressof(vtable) + RTTI * WORD, 0)
        _kept_alive.extend([vtable, guard])
        registry[CUDA] = ctypes.addressof(guard)
    torch._C._ensureCUDADeviceGuardSet()


def _set_hooks(torch_cpu: ctypes.CDLL) -> None:
    get_hooks = torch_cpu[GET_HOOKS]
    get_hooks.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p.from_address(get_hooks())
    assert pointer.value is not None
    size = NUM_SLOTS + RTTI
    table = (ctypes.c_void_p * size)(*(ctypes.c_void_p * size).from_address(pointer.value - RTTI * WORD))
    table[RTTI + IS_BUILT] = _address(_true)
    table[RTTI + HAS_PRIMARY_CONTEXT] = _address(_false)
    _kept_alive.append(table)
    pointer.value = ctypes.addressof(table) + RTTI * WORD


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
