"""Run a command line, and map its errors to exit codes."""

from __future__ import annotations

import os
import sys

import click

from launcher.cli import act, checkup, jobs, planning, see, sweeps  # noqa: F401  they add their commands to the group
from launcher.cli.group import cli
from launcher.errors import FitlaunchError, InputError, Interrupted


def main() -> None:
    """Run the command line, and exit as the errors say."""
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: list[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        code = cli.main(arguments, prog_name="fitlaunch", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return InputError.exit_code
    except FitlaunchError as error:
        from launcher.report.console import make_console
        from launcher.report.errors import show_error

        show_error(error, make_console())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Interrupted.exit_code
    except BrokenPipeError:
        # Whoever read us has gone: nothing is wrong, but what is still buffered must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0
