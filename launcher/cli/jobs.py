"""What is done with a result: merge, generate, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.group import cli, resolve, takes_run

if TYPE_CHECKING:
    from launcher.runs.layout import RunFolder


@cli.command()
@takes_run
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to save; 'merged' in the run's folder otherwise."
)
def merge(run: str, runs_dir: Path, output: Path | None) -> int:
    """Write the adapter merged into its base, as one plain model."""
    where = () if output is None else ("--output", str(output))
    return _run_job("jobs.merge", resolve(run, runs_dir), *where)


@cli.command()
@takes_run
@click.option("--prompt", multiple=True, help="What to ask; may be given several times. Held-out rows otherwise.")
@click.option("--merged", is_flag=True, help="Ask the merged model instead of base and adapter.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="The longest answer, in tokens.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def generate(
    run: str, runs_dir: Path, prompt: tuple[str, ...], merged: bool, max_new_tokens: int | None, as_json: bool
) -> int:
    """Answer a few prompts with base and result side by side."""
    options = [f"--prompt={text}" for text in prompt]
    options += ["--merged"] * merged + ["--json"] * as_json
    options += [] if max_new_tokens is None else [f"--max-new-tokens={max_new_tokens}"]
    return _run_job("jobs.generate", resolve(run, runs_dir), *options)


@cli.command()
@takes_run
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def evaluate(run: str, runs_dir: Path, as_json: bool) -> int:
    """Measure the held-out loss of base and result again."""
    return _run_job("jobs.evaluate", resolve(run, runs_dir), *["--json"] * as_json)


def _run_job(module: str, folder: RunFolder, *options: str) -> int:
    from launcher.targets.module import run_module

    return run_module(module, ("--run", str(folder.root), *options))
