"""The console script: everything that is done to a run after it was started.

What is for people goes to stderr, logs and JSON to stdout. Each command imports what it needs, so that help is instant.
"""

from launcher.cli.group import cli
from launcher.cli.main import main, run_cli

__all__ = ["cli", "main", "run_cli"]
