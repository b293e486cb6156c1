"""End whatever is left of a run on its hosts, and have each of them say what that was: the proof that nothing is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.runs.layout import RunFolder
from launcher.runs.records import NodeEnd, write_exclusively
from launcher.spec import HostSlots, to_json
from launcher.targets.ssh import ask_hosts

TIMEOUT_S = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What was left on a host. num_found: processes of the run that were there and had to be ended; None where the
    host could not be asked, and why."""

    host: str
    num_found: int | None
    why: str = ""


def end_on_hosts(run: RunFolder, hosts: Sequence[HostSlots], *, python: str) -> tuple[Left, ...]:
    """Ask every host to end the processes of the run by force; only those that were started for this very run are."""
    words = (python, "-P", "-m", "launcher.node", "--end", str(run.root))
    answers = ask_hosts({each.host: words for each in hosts}, timeout_s=TIMEOUT_S)
    return tuple(_read(answer.host, answer.exit_code, answer.out, answer.last_words) for answer in answers)


def _read(host: str, exit_code: int | None, out: str, last_words: str) -> Left:
    numbers = [line for line in out.split() if line.isdecimal()]
    if exit_code == 0 and numbers:
        return Left(host=host, num_found=int(numbers[-1]))
    return Left(host=host, num_found=None, why=last_words or f"exit code {exit_code}")


def write_ended(run: RunFolder, attempt: int, node: int, host: str) -> None:
    """Write down that a node has ended, now that it is known, where no agent could: DeepSpeed's launcher has none."""
    now_s = time.time()
    end = NodeEnd(
        attempt=attempt,
        node_rank=node,
        host=host,
        started_at_s=now_s,
        ended_at_s=now_s,
        exit_code=None,
        deaths=(),
        ended_by="cancelled",
    )
    with contextlib.suppress(OSError):
        write_exclusively(run.node_end(attempt, node), to_json(end) + "\n")


def unproven(left: Iterable[Left]) -> str:
    """Which hosts could not be asked, in words; '' where all were."""
    unknown = [each for each in left if each.num_found is None]
    return "; ".join(f"what is left on {each.host} is not known ({each.why})" for each in unknown)
