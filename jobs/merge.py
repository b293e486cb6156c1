"""An adapter merged into its base, saved as a plain transformers model with its tokenizer.

    python -m jobs.merge --run DIR [--output DIR]

The base is loaded in the run's compute dtype. A QLoRA adapter was trained beside quantised weights and is merged into
the unquantised ones: the merged model is not rounded, and its loss differs slightly from the one in training.
Before the model counts, its logits are compared with those of base and adapter.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from jobs import prompt
from jobs.data import split_rows
from jobs.finished import FinishedRun, NoResult, attach_result, load_base, open_run, pick_device, quieten, tokenizer_of
from launcher.spec import MethodKind

NUM_PROBES = 2
MAX_PROBE_TOKENS = 256
# Largest difference between two logits, over the largest logit. Merging rounds each weight once more to the compute
# dtype: an fp32 model differs by the order of its sums alone, a half-precision one by rounding in every layer.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class NothingToMerge(RuntimeError):
    """The run trained the whole model."""


class MergeFailed(RuntimeError):
    """The merged model does not compute what base and adapter compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Where the merged model is, and how far its logits are from base and adapter, relative to the largest."""

    directory: Path
    difference: float
    tolerance: float


def merge(run: FinishedRun, output: Path, device: torch.device) -> Merged:
    """Merge, compare and save; `output` appears whole or not at all."""
    if not run.has_adapter:
        raise NothingToMerge(f"the run trained the whole model: {run.folder.result} is it, and nothing is to be merged")
    if output.exists():
        raise FileExistsError(f"{output} exists already: remove it, or name another place with --output")
    tokenizer = tokenizer_of(run)
    probes = _probes(run, tokenizer, device)
    adapted = attach_result(load_base(run, device, quantised=False), run)
    expected = _logits(adapted, probes)
    merged = adapted.merge_and_unload(safe_merge=True)
    difference = _difference(expected, _logits(merged, probes))
    tolerance = TOLERANCE[run.dtype]
    if not difference <= tolerance:
        raise MergeFailed(
            f"logits differ by {difference:.2e} of the largest, more than {tolerance:.0e}: nothing was saved"
        )
    _save(merged, tokenizer, output)
    return Merged(directory=output, difference=difference, tolerance=tolerance)


def _probes(run: FinishedRun, tokenizer: Any, device: torch.device) -> list[torch.Tensor]:
    train_rows, held_out = split_rows(run.spec.data, run.spec.train.seed)
    examples = prompt.encode(tokenizer, (held_out or train_rows)[:NUM_PROBES])
    return [torch.tensor([example.input_ids[:MAX_PROBE_TOKENS]], device=device) for example in examples]


def _logits(model: Any, probes: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(input_ids=probe).logits.float() for probe in probes]


def _difference(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> float:
    """The largest absolute difference, over the largest absolute value expected; NaN where either has one."""
    largest = torch.stack([logits.abs().max() for logits in expected]).max()
    differences = [(a - b).abs().max() for a, b in zip(expected, actual, strict=True)]
    return float(torch.stack(differences).max() / largest)


def _save(model: Any, tokenizer: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it for its owner alone
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.merge", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--output", type=Path, help="where to save; default: merged, in the run's folder")
    options = parser.parse_args(arguments)
    quieten()
    console = Console(stderr=True, highlight=False)
    try:
        run = open_run(options.run)
        merged = merge(run, options.output or run.folder.merged, pick_device())
    except (NoResult, NothingToMerge, FileExistsError) as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 2
    except MergeFailed as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 5
    if run.spec.method.kind is MethodKind.QLORA:
        console.print("The adapter was trained beside quantised weights and is merged into the unquantised base.")
    console.print(
        f"merged model: {merged.directory}\nlogits differ from base and adapter by {merged.difference:.1e} "
        f"of the largest (at most {merged.tolerance:.0e} is accepted)",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
