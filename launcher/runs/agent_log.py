"""What torchrun and DeepSpeed's launcher say about how their ranks ended. Pure; the words are those of torch 2.13
(distributed/elastic/multiprocessing/errors) and DeepSpeed 0.19.8 (launcher/launch.py), and tests run both."""

from __future__ import annotations

import re
from collections.abc import Mapping

from launcher.runs.records import RankPlace

TORCHRUN_FAILURE = re.compile(
    r"^ *rank +: (\d+) \(local_rank: (\d+)\)\n *exitcode +: (-?\d+) \(pid: (\d+)\)", re.MULTILINE
)
TORCHRUN_CLOSING = re.compile(r"Sending process \d+ closing signal")
TORCHRUN_TOLD_TO_END = re.compile(r"Received \d+ death signal|Received Signals\.\w+ death signal")
DEEPSPEED_SPAWNED = re.compile(r"process (\d+) spawned with command")
DEEPSPEED_SUCCESS = re.compile(r"Process (\d+) exits successfully")
DEEPSPEED_FAILURE = re.compile(r"exits with return code = (-?\d+)")
DEEPSPEED_CLOSING = re.compile(r"Killing subprocess \d+")


def exit_codes(text: str, *, unknown: tuple[int, ...]) -> Mapping[int, int]:
    """Exit codes by rank, as subprocess has them, as far as the text tells.

    unknown: ranks seen to have ended, in that order, whose exit code nobody saw. DeepSpeed names no rank for the
    code it reports; it is the code of the first of them that did not succeed.
    """
    failures = {int(rank): int(code) for rank, _, code, _ in TORCHRUN_FAILURE.findall(text)}
    if failures:
        return {rank: failures.get(rank, 0) for rank in {*failures, *unknown}}
    spawned = [int(pid) for pid in DEEPSPEED_SPAWNED.findall(text)]
    codes = {spawned.index(pid): 0 for pid in map(int, DEEPSPEED_SUCCESS.findall(text)) if pid in spawned}
    failed = DEEPSPEED_FAILURE.search(text)
    first_failed = next((rank for rank in unknown if rank not in codes), None)
    if failed and first_failed is not None:
        codes[first_failed] = int(failed[1])
    return codes


def failed_places(text: str) -> tuple[RankPlace, ...]:
    """Where the ranks were that torchrun names as failed: some end before anybody has looked for them."""
    return tuple(
        RankPlace(rank=int(rank), local_rank=int(local_rank), pid=int(pid))
        for rank, local_rank, _, pid in TORCHRUN_FAILURE.findall(text)
    )


def is_closing(text: str) -> bool:
    """Whether the program is ending its other ranks because one has failed, and not because it was told to end."""
    if TORCHRUN_TOLD_TO_END.search(text):
        return False
    return bool(TORCHRUN_CLOSING.search(text) or DEEPSPEED_CLOSING.search(text))
