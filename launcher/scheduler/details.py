"""What `scontrol show` tells: a partition's limits, the cluster's settings, the nodes of a list."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.scheduler.client import Ask, ask

UNLIMITED = frozenset({"UNLIMITED", "INFINITE", "NONE", "N/A", "(null)", ""})
# A key begins a word. Values hold spaces (Command=, Reason=), but no word of theirs looks like a key.
_KEY = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9:/_]*)=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition's limits; None is none. accounts and qos: those allowed, empty for all."""

    name: str
    state: str
    num_nodes: int
    max_nodes: int | None
    max_time_min: int | None
    accounts: tuple[str, ...]
    denied_accounts: tuple[str, ...]
    qos: tuple[str, ...]

    @property
    def most_nodes(self) -> int:
        """How many nodes a job can have at most."""
        return self.num_nodes if self.max_nodes is None else min(self.num_nodes, self.max_nodes)


def parse_record(text: str) -> dict[str, str]:
    """The KEY=VALUE pairs of one record of `scontrol --oneliner show`."""
    found = list(_KEY.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {match[1]: text[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}


def parse_time_min(text: str) -> int | None:
    """Minutes from [days-]hours:minutes:seconds or minutes:seconds; None for no limit."""
    if text in UNLIMITED:
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes = ([0, 0, *parts])[-3:-1] if len(parts) > 1 else (0, parts[0])
    return (int(days or 0) * 24 + hours) * 60 + minutes


def parse_partition(text: str) -> Partition:
    """A partition from `scontrol --oneliner show partition NAME`."""
    record = parse_record(text)
    return Partition(
        name=record["PartitionName"],
        state=record.get("State", "UNKNOWN"),
        num_nodes=int(record.get("TotalNodes", 0)),
        max_nodes=None if record.get("MaxNodes", "") in UNLIMITED else int(record["MaxNodes"]),
        max_time_min=parse_time_min(record.get("MaxTime", "")),
        accounts=_allowed(record, "AllowAccounts"),
        denied_accounts=_allowed(record, "DenyAccounts"),
        qos=_allowed(record, "AllowQos"),
    )


def parse_partitions(text: str) -> tuple[tuple[Partition, bool], ...]:
    """Every partition of `scontrol --oneliner show partition`, each with whether it is the default."""
    lines = [line for line in text.splitlines() if line.startswith("PartitionName=")]
    return tuple((parse_partition(line), parse_record(line).get("Default") == "YES") for line in lines)


def _allowed(record: Mapping[str, str], key: str) -> tuple[str, ...]:
    text = record.get(key, "")
    return () if text in UNLIMITED | {"ALL"} else tuple(text.split(","))


def partitions(run: Ask = ask) -> tuple[tuple[Partition, bool], ...]:
    """The partitions that this user sees, each with whether it is the default."""
    return parse_partitions(run(("scontrol", "--oneliner", "show", "partition")))


def parse_config(text: str) -> dict[str, str]:
    """The settings of `scontrol show config`, as they are printed."""
    pairs = (line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    return {name.strip(): value.strip() for name, value in pairs}


def max_array_size(run: Ask = ask) -> int | None:
    """MaxArraySize: one more than the highest index of an array; None where it is not told."""
    found = parse_config(run(("scontrol", "show", "config"))).get("MaxArraySize", "")
    return int(found) if found.isdecimal() else None


def hostnames(nodelist: str, run: Ask = ask) -> tuple[str, ...]:
    """The nodes of a list such as node[1-3]."""
    return tuple(run(("scontrol", "show", "hostnames", nodelist)).split())
