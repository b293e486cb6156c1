"""Answers of base and result side by side: greedy, so that the same run always answers the same.

    python -m jobs.generate --run DIR [--merged] [--prompt TEXT ...] [--max-new-tokens N] [--json]

Without a prompt, the first held-out rows are asked, and their own answers stand beside the models'.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import GenerationConfig

from jobs import prompt
from jobs.data import split_rows
from jobs.finished import (
    BASE,
    MERGED,
    RESULT,
    FinishedRun,
    NoResult,
    models,
    open_run,
    pick_device,
    quieten,
    tokenizer_of,
)
from launcher.datafile import Row
from launcher.spec import to_json

NUM_DEFAULT_PROMPTS = 3
MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What base and result say to one prompt. expected is the row's own answer, None for a prompt that was given."""

    prompt: str
    base: str
    result: str
    expected: str | None


def generate(
    run: FinishedRun, rows: Sequence[Row], device: torch.device, *, max_new_tokens: int, merged: bool = False
) -> list[Answer]:
    """Ask base and result (or the merged model) everything, greedily."""
    tokenizer = tokenizer_of(run)
    texts = prompt.prompts(tokenizer, rows)
    said = {
        BASE if name == BASE else RESULT: [
            answer(model, tokenizer, text, max_new_tokens=max_new_tokens) for text in texts
        ]
        for name, model in models(run, device, merged=merged)
    }
    return [
        Answer(prompt=_ask(row), base=base, result=result, expected=row.output or None)
        for row, base, result in zip(rows, said[BASE], said[RESULT], strict=True)
    ]


def answer(model: Any, tokenizer: Any, text: str, *, max_new_tokens: int) -> str:
    """Continue a prompt, greedily, up to the token that ends the turn."""
    ids = torch.tensor(prompt.tokenise(tokenizer, [text]), device=model.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=_ends(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.inference_mode():
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip()


def default_rows(run: FinishedRun) -> list[Row]:
    """The first held-out rows of the run's data, or of the training rows where none are held out."""
    train_rows, held_out = split_rows(run.spec.data, run.spec.train.seed)
    return (held_out or train_rows)[:NUM_DEFAULT_PROMPTS]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a turn: some models end it with another than the tokenizer's end of text."""
    published = model.generation_config.eos_token_id
    ends = published if isinstance(published, list) else [published]
    return sorted({token for token in (*ends, tokenizer.eos_token_id) if token is not None})


def _ask(row: Row) -> str:
    return f"{row.instruction}\n\n{row.input}" if row.input.strip() else row.instruction


def _table(answers: Sequence[Answer], *, result: str, is_terminal: bool) -> Table:
    shows_expected = any(answer.expected for answer in answers)
    table = Table(show_lines=True, box=box.HEAVY_HEAD if is_terminal else box.ASCII2)
    for heading in ("prompt", BASE, result, *(["expected"] if shows_expected else [])):
        table.add_column(heading, ratio=1, overflow="fold")
    for each in answers:
        cells = (each.prompt, each.base, each.result, *([each.expected or ""] if shows_expected else []))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--merged", action="store_true", help="ask the merged model instead of base and adapter")
    parser.add_argument("--prompt", action="append", help="what to ask; may be given several times")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, help="longest answer, in tokens")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    quieten()
    console = Console(stderr=True)
    try:
        run = open_run(options.run)
        rows = [Row(text, "", "") for text in options.prompt] if options.prompt else default_rows(run)
        answers = generate(run, rows, pick_device(), max_new_tokens=options.max_new_tokens, merged=options.merged)
    except NoResult as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return 2
    if options.json:
        sys.stdout.write(to_json(answers) + "\n")
    else:
        console.print(_table(answers, result=MERGED if options.merged else RESULT, is_terminal=console.is_terminal))
    return 0


if __name__ == "__main__":
    sys.exit(main())
