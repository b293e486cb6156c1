"""Hostfiles: `host slots=N`, one host a line. Read strictly, for ssh and DeepSpeed take more than is good.

A name that begins with a dash would be an option of ssh (-oProxyCommand=... runs a program), DeepSpeed's own parser
reads `slots=2junk` as 2 and takes `slots=0`, and a file that is missing makes it train on this host without a word.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import Problem
from launcher.spec import HostSlots

FIELD = "cluster.hostfile"
FORM = "write HOST slots=N or USER@HOST slots=N"
MAX_SLOTS = 1024
MAX_BYTES = 1 << 20
# RFC 1123 host names, with the underscore that some sites use; and user names as useradd allows them.
LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"{LABEL}(?:\.{LABEL})*")
USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
SLOTS = re.compile(r"slots=([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """What is wrong with a line; line 0 is the file itself."""

    line: int
    text: str
    rule: str
    way_out: str


def host_name(host: str) -> str:
    """The host of `host` or `user@host`, by which others reach it."""
    return host.rpartition("@")[2]


def read_hostfile(path: Path) -> tuple[tuple[HostSlots, ...], tuple[Problem, ...]]:
    """The hosts of a file, and everything that is wrong with it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return (), (_problem(path, "does not exist", "see hostfile.example"),)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return (), (_problem(path, f"cannot be read ({reason})", "give a file that can"),)
    if len(content) > MAX_BYTES:
        return (), (_problem(path, f"is larger than {MAX_BYTES} bytes", "one line a host"),)
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return (), (_problem(path, f"line {line}: has characters that are not ASCII", FORM),)
    hosts, wrong = parse_hostfile(text)
    return hosts, tuple(_problem(path, _place(each), each.way_out) for each in wrong)


def parse_hostfile(text: str) -> tuple[tuple[HostSlots, ...], tuple[Wrong, ...]]:
    """The hosts of a text, in its order, and what is wrong with its lines."""
    hosts: dict[str, tuple[int, HostSlots]] = {}
    wrong: list[Wrong] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        found = list(_wrong_words(number, words))
        name = host_name(words[0]).lower()
        if not found and name in hosts:
            rule = f"names {name} again, after line {hosts[name][0]}"
            found.append(Wrong(line=number, text=words[0], rule=rule, way_out="one line a host, with all its slots"))
        wrong += found
        if not found:
            hosts[name] = (number, HostSlots(host=words[0], slots=int(words[1].removeprefix("slots="))))
    if not hosts and not wrong:
        wrong.append(Wrong(line=0, text="", rule="names no host", way_out=FORM))
    return tuple(host for _, host in hosts.values()), tuple(wrong)


def hostfile_text(hosts: Sequence[HostSlots], *, slots: int) -> str:
    """A hostfile of these hosts, with as many slots as are used of each; without a newline at its end."""
    return "\n".join(f"{each.host} slots={slots}" for each in hosts)


def _wrong_words(line: int, words: Sequence[str]) -> Iterable[Wrong]:
    rule, way_out = _host_rule(words[0])
    if rule:
        yield Wrong(line=line, text=words[0], rule=rule, way_out=way_out)
    if len(words) == 1:
        yield Wrong(line=line, text=words[0], rule="says no slots", way_out=FORM)
        return
    found = SLOTS.fullmatch(words[1])
    if found is None:
        yield Wrong(line=line, text=words[1], rule="is not slots=N", way_out=FORM)
    elif not 1 <= int(found[1]) <= MAX_SLOTS:
        yield Wrong(line=line, text=words[1], rule=f"is not in 1..{MAX_SLOTS}", way_out="leave out what is not used")
    if len(words) > 2:
        yield Wrong(line=line, text=" ".join(words[2:]), rule="is more than a host and its slots", way_out=FORM)


def _host_rule(word: str) -> tuple[str, str]:
    """What is wrong with a host, '' where nothing is; and the way out."""
    config = "ports and options belong into ~/.ssh/config"
    user, at, host = word.rpartition("@")
    if word.startswith("-"):
        return "would be an option of ssh", config
    if at and not USER.fullmatch(user):
        return "names no user that can be", FORM
    if ":" in host:
        return ("is an IPv6 address", "give it a name") if _is_ipv6(host) else ("has a port", config)
    if not HOST.fullmatch(host) or len(host) > 253:
        return "is no host name", FORM
    return "", ""


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).version == 6
    except ValueError:
        return False


def _place(wrong: Wrong) -> str:
    return f"line {wrong.line}: {wrong.text} {wrong.rule}" if wrong.line else wrong.rule


def _problem(path: Path, rule: str, way_out: str) -> Problem:
    return Problem(field=FIELD, value=str(path), rule=rule, way_out=way_out)
