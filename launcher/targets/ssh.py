"""Commands on other hosts by ssh: never a prompt, never an unknown host key, nothing in them that a shell could read.

sshd hands the words of a command to the user's shell as one line. They are quoted for it, and refused before that
unless all of them are harmless without quotes.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

CONNECT_TIMEOUT_S = 5
# A host that has lost its power says nothing any more; this long after its last word it is taken for lost.
ALIVE_PERIOD_S = 10
ALIVE_MISSED = 3
MAX_PARALLEL = 64
POLL_S = 0.2
EXIT_SSH = 255
"""ssh's own exit code where it could not connect, or where the connection broke."""

OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_TIMEOUT_S}",
    "StrictHostKeyChecking=yes",
    f"ServerAliveInterval={ALIVE_PERIOD_S}",
    f"ServerAliveCountMax={ALIVE_MISSED}",
    # Of the user's ~/.ssh/config names, keys, ports and proxies are welcome; these would change what a command does.
    "ClearAllForwardings=yes",
    "ControlMaster=no",
    "ControlPath=none",
    "ForwardAgent=no",
    "ForwardX11=no",
    "LogLevel=ERROR",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
)
WORD = re.compile(r"[A-Za-z0-9_.,@+=:/~-]+", re.ASCII)
# What ssh and pdsh need of this process's environment, and all that they get: sshd may be told to accept more of it.
PASSED_ON = ("HOME", "KRB5CCNAME", "LANG", "LOGNAME", "PATH", "SSH_AGENT_PID", "SSH_AUTH_SOCK", "TMPDIR", "USER")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command on a host answered. exit_code is None where it was not waited for to its end."""

    host: str
    exit_code: int | None
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line of its complaint, for a person."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def option_words() -> tuple[str, ...]:
    """The options as words of a command line."""
    return tuple(word for option in OPTIONS for word in ("-o", option))


def ssh_argv(host: str, words: Sequence[str]) -> tuple[str, ...]:
    """The command that runs another one on a host, without a terminal. ValueError for words that a shell could read."""
    if host.startswith("-"):
        raise ValueError(f"{host} would be an option of ssh")
    for word in words:
        if not WORD.fullmatch(word):
            raise ValueError(f"{word!r} cannot go over ssh: a shell could read more into it than a word")
    return ("ssh", "-T", *option_words(), "--", host, " ".join(("exec", *map(shlex.quote, words))))


def ssh_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What ssh is given of an environment."""
    return {name: environ[name] for name in PASSED_ON if name in environ}


def _never() -> bool:
    """Nobody asks to stop."""
    return False


def ask_hosts(
    commands: Mapping[str, Sequence[str]],
    *,
    timeout_s: float,
    text_in: str = "",
    is_stopped: Callable[[], bool] = _never,
) -> tuple[Answer, ...]:
    """Run one command on each host, at the same time; the answers in the order of the hosts.

    Whoever has not answered in time, or when a stop is asked, is no longer waited for.
    """
    end = time.monotonic() + timeout_s

    def ask(host: str) -> Answer:
        return _ask(host, ssh_argv(host, commands[host]), end, text_in, is_stopped)

    with ThreadPoolExecutor(max_workers=min(MAX_PARALLEL, max(1, len(commands)))) as pool:
        return tuple(pool.map(ask, commands))


def _ask(host: str, argv: tuple[str, ...], end: float, text_in: str, is_stopped: Callable[[], bool]) -> Answer:
    try:
        process = subprocess.Popen(
            argv,
            env=ssh_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(host=host, exit_code=None, out="", err=f"{argv[0]}: {error.strerror or error}")
    with process:
        text: str | None = text_in
        while True:
            try:
                out, err = process.communicate(text, timeout=POLL_S)
                return Answer(host=host, exit_code=process.returncode, out=out, err=err)
            except subprocess.TimeoutExpired:
                text = None
                if is_stopped() or time.monotonic() >= end:
                    break
        kill_session(process)
        out, err = process.communicate()
        reason = "stopped" if is_stopped() else "no answer in time"
        return Answer(host=host, exit_code=None, out=out, err=f"{err}\n{reason}")


def kill_session(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """End a command of ours here, with a proxy that its ssh may have started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
