"""Quantised weights that wait in host RAM until FSDP2 shards them.

Left to itself transformers quantises every weight on the rank's GPU and leaves it there (5.23
quantizers/quantizer_bnb_4bit.py update_device_map), so that each GPU must hold the whole model before it is sharded,
and its shard beside it. Here a weight is quantised on the GPU, which is many times as fast as a CPU at it, and
goes back to host RAM; fully_shard then takes one block after the other to the GPU (torch 2.13
distributed/fsdp/_fully_shard/_fsdp_init.py _move_states_to_device).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from launcher.spec import ModelSpec

Read = Callable[[ModelSpec, dict[str, Any]], Any]
"""Makes the model with its weights, given the options of from_pretrained that the job decides."""


def into_host_memory(read: Read, device: torch.device) -> Read:
    """Reads as `read` does, with every 4-bit weight quantised by the device and the whole model left in host RAM."""
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    convert = Bnb4bitQuantize.convert

    def convert_there(self: Any, weights: dict[str, Any], **context: Any) -> dict[str, Any]:
        there = tree_map_only(torch.Tensor, lambda weight: weight.to(device), weights)
        return {name: weight.to("cpu") for name, weight in convert(self, there, **context).items()}

    def read_into_host_memory(model: ModelSpec, options: dict[str, Any]) -> Any:
        Bnb4bitQuantize.convert = convert_there
        try:
            return read(model, {**options, "device_map": {"": "cpu"}})
        finally:
            Bnb4bitQuantize.convert = convert

    return read_into_host_memory
