"""The program that runs on every node of a cluster.

    python -m launcher.node RUN_DIR ATTEMPT --head HOST --port PORT --rendezvous ID [--node-rank N] [--stdin]
    python -m launcher.node --end RUN_DIR

The first starts and follows the ranks of one node (launcher.node.agent). Without --node-rank it is the number of the
task under srun. With --stdin a launcher holds its standard input (launcher.node.leash).
The second ends by force whatever is left of the run on this host, and prints how many processes there were. Its exit
code is 1 where one of them did not even end by KILL.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import FitlaunchError
from launcher.node.agent import AgentArguments, run_agent, run_folder
from launcher.node.head import Meeting
from launcher.node.leftovers import END, end_leftovers

STOP_GRACE_S = 600.0
"""By itself an agent waits as long as torchrun does; a scheduler that has less time ends all of it."""


def main() -> int:
    """Carry out a command line; returns the exit code."""
    arguments = _parse(sys.argv[1:])
    run = run_folder(arguments.run)
    try:
        if arguments.end:
            left = end_leftovers(run)
            print(left.num_found, flush=True)  # noqa: T201
            return 1 if left.survivors else 0
        return run_agent(
            AgentArguments(
                run=run,
                attempt=arguments.attempt,
                node=arguments.node_rank,
                meeting=Meeting(head=arguments.head, port=arguments.port),
                rendezvous=arguments.rendezvous,
                stop_grace_s=arguments.stop_grace,
                is_held=arguments.stdin,
            )
        )
    except FitlaunchError as error:
        print(f"fitlaunch: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launcher.node", description="One node of a fitlaunch run.")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("attempt", type=int, nargs="?", help="which start of the run this is")
    parser.add_argument("--node-rank", type=int, default=_task(), help="this node's number; the task's under srun")
    parser.add_argument("--head", help="host on which the nodes meet")
    parser.add_argument("--port", type=int, help="port there")
    parser.add_argument("--rendezvous", help="a name that no other attempt has")
    parser.add_argument("--stop-grace", type=float, default=STOP_GRACE_S, help="seconds the ranks may take to stop")
    parser.add_argument("--stdin", action="store_true", help="a launcher holds the standard input")
    parser.add_argument(END, action="store_true", help="end what is left of the run on this host")
    arguments = parser.parse_args(words)
    needed = ("attempt", "node_rank", "head", "port", "rendezvous")
    missing = [name for name in needed if getattr(arguments, name) is None]
    if missing and not arguments.end:
        parser.error(f"missing: {', '.join(missing)}")
    return arguments


def _task() -> int | None:
    task = os.environ.get("SLURM_PROCID", "")
    return int(task) if task.isdecimal() else None


if __name__ == "__main__":
    sys.exit(main())
