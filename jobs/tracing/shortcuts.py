"""What torch works out anew in every call, though it is the same every time: worked out once (torch 2.13).

It decides nothing about memory; it is most of what some calls take, and a trace has tens of thousands of them.
"""

from __future__ import annotations

import functools
import inspect
from importlib import import_module
from types import SimpleNamespace


def install() -> None:
    """Remember."""
    _read_signatures_once()


def _read_signatures_once() -> None:
    """Function.apply reads the signature of forward() before each call (torch/autograd/function.py). ZeRO-3 has two
    such functions for each module, beside that of a linear layer."""
    functions = import_module("torch.autograd.function")
    assert functions.inspect is inspect
    functions.inspect = SimpleNamespace(signature=functools.cache(inspect.signature))
