"""Model shapes without torch: what parameters a model has, which are quantised, and which LoRA adds.

shape.py holds the types, architectures.py what transformers knows of each model type, config.py reads and checks a
config.json, inventory.py turns one into a ModelShape, adapters.py says what peft and bitsandbytes make of it.
"""

from __future__ import annotations

from launcher.models.adapters import (
    lora_allows_dropout,
    lora_parameters,
    lora_target_names,
    quantised_parameters,
)
from launcher.models.architectures import ARCHITECTURES
from launcher.models.config import check_config, read_config
from launcher.models.inventory import model_shape
from launcher.models.shape import ModelShape, Parameter, Role

__all__ = [
    "ARCHITECTURES",
    "ModelShape",
    "Parameter",
    "Role",
    "check_config",
    "lora_allows_dropout",
    "lora_parameters",
    "lora_target_names",
    "model_shape",
    "quantised_parameters",
    "read_config",
]
