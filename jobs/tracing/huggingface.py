"""transformers on fake tensors (5.23): what it decides by looking at values, and its loading of weights without any.

transformers.masking_utils asks whether a mask or position_ids are "traced" and takes another path for fake tensors,
with a mask of sequence x sequence and repeated keys. Here it is told that nothing is traced, and what it would have
read from the data comes from the job: batches have no padding mask, and are packed or not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist

from jobs.tracing.target import Target
from launcher.spec import ModelSpec

# A default pad_token_id may lie outside a smaller vocabulary; which token pads decides nothing here.
NO_PADDING = {"pad_token_id": None}


def install(target: Target) -> None:
    """Decide as for real data."""
    from transformers import masking_utils

    for name in ("is_tracing", "fast_all", "find_packed_sequence_indices"):
        assert hasattr(masking_utils, name), f"transformers.masking_utils.{name} is gone"
    find_packed = masking_utils.find_packed_sequence_indices

    def find_packed_sequence_indices(position_ids: torch.Tensor) -> torch.Tensor | None:
        found = find_packed(position_ids)  # its temporaries are those of a run
        return found if target.spec.train.packing else None

    masking_utils.is_tracing = lambda _tensor=None: False
    masking_utils.fast_all = lambda _mask: True
    masking_utils.find_packed_sequence_indices = find_packed_sequence_indices


def read_shapes(model: ModelSpec, options: dict[str, Any], *, mapped: bool = False) -> Any:
    """jobs.model.read_weights without files: from_pretrained itself, given weights that have a shape and no data.

    mapped: tensors are views of one mapped file, which is what they stay for a job on the CPU until they are copied;
    a GPU's are copied at once.
    Its loading is in the calling thread (HF_DEACTIVATE_ASYNC_LOAD, set in jobs.trace): fake tensors belong to a thread.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import is_deepspeed_zero3_enabled

    config = AutoConfig.for_model(**{**NO_PADDING, **model.config})
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    weights: Mapping[str, Any] = Weights(model_class, config, mapped=mapped)
    if is_deepspeed_zero3_enabled() and "quantization_config" not in options:
        # integrations/deepspeed.py takes tensors: rank 0's are read, the others' have no more than a shape.
        device = "cpu" if dist.get_rank() == 0 else "meta"
        weights = {name: part.read(device) for name, part in weights.items()}
    return model_class.from_pretrained(None, config=config, state_dict=weights, **options)


class MappedFile:
    """A safetensors file of one storage, without its header."""

    def __init__(self, size_bytes: int) -> None:
        self._bytes = torch.empty(size_bytes, dtype=torch.uint8)

    def view(self, offset_bytes: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The tensor at an offset."""
        end_bytes = offset_bytes + shape.numel() * dtype.itemsize
        return self._bytes[offset_bytes:end_bytes].view(dtype).view(shape)


class Slice:
    """What safetensors gives for a tensor in a file: read, on the host, only when indexed."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, file: MappedFile | None, offset_bytes: int) -> None:
        self._shape = shape
        self._dtype = dtype
        self._file = file
        self._offset_bytes = offset_bytes

    def get_shape(self) -> list[int]:
        return list(self._shape)

    def __getitem__(self, _index: Any) -> torch.Tensor:
        return self.read("cpu")

    def read(self, device: str) -> torch.Tensor:
        if self._file is not None and device == "cpu":
            return self._file.view(self._offset_bytes, self._shape, self._dtype)
        return torch.empty(self._shape, dtype=self._dtype, device=device)


class Weights(dict[str, Slice]):
    """The state dict of a checkpoint, under the names of the model itself."""

    def __init__(self, model_class: Any, config: Any, *, mapped: bool) -> None:
        from torch.utils._python_dispatch import _disable_current_modes
        from transformers.initialization import no_init_weights

        with _disable_current_modes(), torch.device("meta"), no_init_weights():
            skeleton = model_class(copy.deepcopy(config))  # _from_config would partition it under ZeRO-3
        tied: Mapping[str, str] = skeleton.all_tied_weights_keys
        dtype = getattr(torch, str(config.dtype).removeprefix("torch.")) if config.dtype else torch.bfloat16
        # A checkpoint has tied weights once, and the widest elements first, which keeps all aligned.
        inside = {
            name: (tensor.shape, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in skeleton.state_dict().items()
            if name not in tied
        }
        in_order = sorted(inside.items(), key=lambda item: -item[1][1].itemsize)
        sizes = [shape.numel() * kind.itemsize for _, (shape, kind) in in_order]
        file = MappedFile(sum(sizes)) if mapped else None
        offsets = accumulate(sizes, initial=0)
        for (name, (shape, kind)), offset_bytes in zip(in_order, offsets, strict=False):
            self[name] = Slice(shape, kind, file, offset_bytes)
