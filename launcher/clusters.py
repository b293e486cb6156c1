"""Where a job goes, read from the composed `cluster` group: this host, a list of hosts, or a Slurm cluster."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.reader import AUTO, Reader
from launcher.spec import ClusterKind, ClusterSpec, GpuRequest, HostsSpec, SlurmSpec
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
    hostfile = reader.get("cluster.hostfile")
    return HostsSpec(hostfile="" if hostfile is None else str(Path(hostfile).expanduser().absolute()), hosts=())


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
