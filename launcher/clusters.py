"""Where a job goes, read from the composed `cluster` group: this host, a list of hosts, or a Slurm cluster."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from launcher.hostfile import read_hostfile
from launcher.reader import Reader
from launcher.schema import AUTO
from launcher.spec import ClusterKind, ClusterSpec, GpuRequest, HostsSpec, Mode, SlurmSpec
from launcher.units import GIB, KIB, MIB

COMMON = ("name", "kind", "network_interface", "environment")
OF_HOSTS = ("hostfile",)
"""What belongs to every kind of cluster, and to a list of hosts; all other options are Slurm's."""

SIZES = {"K": KIB, "M": MIB, "G": GIB, "T": KIB * GIB}
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d{2}))(?::(?P<seconds>\d{2}))?")


def read_cluster(reader: Reader) -> ClusterSpec:
    """The cluster; what is wrong with it is added to the reader's problems."""
    kind = reader.choice("cluster.kind", ClusterKind)
    _refuse_foreign(reader, kind)
    return ClusterSpec(
        kind=kind,
        name=reader.get("cluster.name"),
        network_interface=reader.get("cluster.network_interface"),
        environment=tuple(reader.get("cluster.environment")),
        hosts=_hosts(reader) if kind is ClusterKind.HOSTS else None,
        slurm=_slurm(reader) if kind is ClusterKind.SLURM else None,
    )


def _refuse_foreign(reader: Reader, kind: ClusterKind) -> None:
    """An option without effect is an error."""
    of_slurm = tuple(name for name in reader.get("cluster") if name not in (*COMMON, *OF_HOSTS))
    foreign = {
        ClusterKind.LOCAL: (*COMMON[2:], *OF_HOSTS, *of_slurm),
        ClusterKind.HOSTS: of_slurm,
        ClusterKind.SLURM: OF_HOSTS,
    }[kind]
    for name in foreign:
        if reader.get(f"cluster.{name}") not in (None, []):
            reader.report(f"cluster.{name}", f"has no effect with cluster={reader.get('cluster.name')}", "leave it out")


def _hosts(reader: Reader) -> HostsSpec:
    """Every host of the file; a plan does without a file."""
    hostfile = reader.get("cluster.hostfile")
    if hostfile is None:
        if reader.get("mode") != Mode.PLAN:
            way_out = "use cluster.hostfile=FILE (see hostfile.example), or mode=plan"
            reader.report("cluster.hostfile", "is required with cluster=hosts", way_out)
        return HostsSpec(hostfile="", hosts=())
    path = Path(hostfile).expanduser().absolute()
    hosts, problems = read_hostfile(path)
    reader.problems.extend(problems)
    return HostsSpec(hostfile=str(path), hosts=hosts)


def read_nodes(reader: Reader, cluster: ClusterSpec) -> int:
    """How many nodes: auto is every host of the hostfile, and 1 where there is none."""
    hosts = () if cluster.hosts is None else cluster.hosts.hosts
    value = reader.get("nodes")
    if value == AUTO:
        return max(1, len(hosts))
    nodes = int(reader.at_least("nodes", 1))
    if hosts and nodes > len(hosts):
        rule = f"is more than the {_count(len(hosts), 'host')} of {reader.get('cluster.hostfile')}"
        reader.report("nodes", rule, f"use nodes={len(hosts)}, or add hosts")
    return nodes


def with_nodes(cluster: ClusterSpec, nodes: int) -> ClusterSpec:
    """The cluster with as many of its hosts as the job takes: the first of the file."""
    if cluster.hosts is None:
        return cluster
    hosts = dataclasses.replace(cluster.hosts, hosts=cluster.hosts.hosts[:nodes])
    return dataclasses.replace(cluster, hosts=hosts)


def read_slots(reader: Reader, cluster: ClusterSpec) -> int | None:
    """Ranks per node as the chosen hosts have slots; None where there are no hosts to tell."""
    if cluster.kind is ClusterKind.SLURM and reader.get("gpus") == AUTO:
        reader.report("gpus", "cannot be counted from here on a Slurm cluster", "say how many a node has: gpus=8")
    hosts = () if cluster.hosts is None else cluster.hosts.hosts
    if not hosts:
        return None
    least, most = min(hosts, key=lambda each: each.slots), max(hosts, key=lambda each: each.slots)
    value = reader.get("gpus")
    if value != AUTO:
        if isinstance(value, int) and value > least.slots:
            rule = f"is more than the {_count(least.slots, 'slot')} of {least.host}"
            reader.report("gpus", rule, f"use gpus={least.slots}, or leave {least.host} out")
        return None
    if least.slots != most.slots:
        rule = (
            f"cannot be one number for every host: {most.host} has {_count(most.slots, 'slot')}, "
            f"{least.host} has {least.slots}"
        )
        reader.report("gpus", rule, f"use gpus={least.slots}")
    return least.slots


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _slurm(reader: Reader) -> SlurmSpec:
    return SlurmSpec(
        partition=reader.get("cluster.partition"),
        account=reader.get("cluster.account"),
        qos=reader.get("cluster.qos"),
        reservation=reader.get("cluster.reservation"),
        constraint=reader.get("cluster.constraint"),
        nodelist=tuple(reader.get("cluster.nodelist")),
        exclude=tuple(reader.get("cluster.exclude")),
        gpu_request=reader.choice("cluster.gpu_request", GpuRequest),
        gpu_type=reader.get("cluster.gpu_type"),
        cpus_per_node=reader.at_least("cluster.cpus_per_node", 1),
        memory_bytes_per_node=_memory(reader),
        time_min=_time_min(reader, "cluster.time") or 1,
        lead_s=None if reader.get("cluster.lead_s") == AUTO else reader.at_least("cluster.lead_s", 1),
        requeue=bool(reader.get("cluster.requeue")),
        max_attempts=reader.at_least("cluster.max_attempts", 1),
        setup=tuple(reader.get("cluster.setup")),
        container=reader.get("cluster.container"),
        container_mounts=tuple(reader.get("cluster.container_mounts")),
        max_nodes=reader.at_least("cluster.max_nodes", 1),
        max_time_min=_time_min(reader, "cluster.max_time"),
        max_array_size=reader.at_least("cluster.max_array_size", 1),
        max_parallel=reader.at_least("cluster.max_parallel", 1),
    )


def _memory(reader: Reader) -> int | None:
    """auto is None, 0 all of the node; otherwise as Slurm reads --mem: a number is MiB."""
    value = reader.get("cluster.mem")
    if value == AUTO:
        return None
    found = re.fullmatch(r"(\d+)([KMGT]?)", str(value))
    if found is None:
        reader.report("cluster.mem", "is no size", "use auto (from the plan), 0 (all of the node), or 64G")
        return None
    return int(found[1]) * SIZES[found[2] or "M"]


def _time_min(reader: Reader, field: str) -> int | None:
    """Minutes, as a number or in Slurm's form [days-]hours:minutes[:seconds]; seconds round up."""
    value = reader.get(field)
    if value is None or (isinstance(value, int) and value > 0):
        return value
    found = TIME.fullmatch(str(value))
    if found is None:
        reader.report(field, "is no time", "use minutes, or [days-]hours:minutes:seconds")
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)
