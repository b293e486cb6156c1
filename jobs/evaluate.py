"""The loss of base and result on the run's held-out rows, in one process.

python -m jobs.evaluate --run DIR [--json]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from jobs.data import Data, load_data
from jobs.finished import BASE, RESULT, FinishedRun, NoResult, models, open_run, pick_device, quieten, tokenizer_of
from jobs.prompt import IGNORED
from launcher.spec import to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Mean cross entropy per learned token of the held-out rows, in nats."""

    num_samples: int
    num_tokens: int
    base: float
    result: float


def evaluate(run: FinishedRun, device: torch.device) -> Losses:
    """Measure both models on the same tokens. NoResult where the run held nothing out."""
    data = load_data(run.spec, tokenizer_of(run))
    if data.eval is None:
        raise NoResult("the run held no rows out: it was started with data.eval_fraction=0")
    means: dict[str, float] = {}
    for name, model in models(run, device):
        means[name], num_tokens = mean_loss(model, data, run.spec.micro_batch, device)
    return Losses(num_samples=len(data.eval), num_tokens=num_tokens, base=means[BASE], result=means[RESULT])


def mean_loss(model: Any, data: Data, batch_size: int, device: torch.device) -> tuple[float, int]:
    """The mean loss over all learned tokens of the held-out rows, whatever the batch; and how many those are."""
    assert data.eval is not None
    loss_sum, num_tokens = 0.0, 0
    for start in range(0, len(data.eval), batch_size):
        rows = [data.eval[index] for index in range(start, min(start + batch_size, len(data.eval)))]
        batch = {name: tensor.to(device) for name, tensor in data.collator(rows).items()}
        learned = int(batch["labels"][:, 1:].ne(IGNORED).sum())
        with torch.inference_mode():
            loss_sum += float(model(**batch).loss) * learned
        num_tokens += learned
    return loss_sum / num_tokens, num_tokens


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    quieten()
    console = Console(stderr=True)
    try:
        losses = evaluate(open_run(options.run), pick_device())
    except NoResult as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 2
    if options.json:
        sys.stdout.write(to_json(losses) + "\n")
    else:
        console.print(
            f"held-out loss: {losses.base:.4f} before, {losses.result:.4f} after "
            f"({losses.num_samples} rows, {losses.num_tokens} tokens)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
