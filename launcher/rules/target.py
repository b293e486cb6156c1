"""Rules about where the job goes, and whether what it asks for is there."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Problem
from launcher.rules.case import Case
from launcher.spec import ClusterKind, Mode


def target_exists(case: Case) -> Iterator[Problem]:
    """Several nodes need a cluster."""
    spec = case.spec
    if spec.nodes > 1 and spec.cluster.kind is ClusterKind.LOCAL:
        way_out = "use cluster=slurm, or cluster=hosts cluster.hostfile=FILE"
        yield Problem(field="nodes", value=spec.nodes, rule="needs a cluster of hosts", way_out=way_out)


def host_has_devices(case: Case) -> Iterator[Problem]:
    """A run uses devices that are there; CUDA never becomes CPU without a word."""
    spec, host = case.spec, case.host
    if case.mode is not Mode.RUN or spec.cluster.kind is not ClusterKind.LOCAL:
        return
    if spec.device.kind == "cpu":
        if spec.gpus_per_node > max(host.num_cores, 2):
            rule = f"is more than this host can run: it has no GPU for it and {host.num_cores} cores"
            way_out = "use gpus=2, or mode=plan device=NAME for a host with GPUs"
            yield Problem(field="gpus", value=spec.gpus_per_node, rule=rule, way_out=way_out)
        return
    if host.gpu is None:
        rule = "is not in this host: it has no GPU"
        yield Problem(field="device", value=spec.device.name, rule=rule, way_out="use device=cpu, or mode=plan")
    elif host.gpu.name != spec.device.name and host.gpu.memory_bytes != spec.device.memory_bytes:
        rule = f"is not in this host: it has {host.num_gpus} x {host.gpu.name}"
        yield Problem(field="device", value=spec.device.name, rule=rule, way_out="use device=auto, or mode=plan")
    if host.gpu is not None and spec.gpus_per_node > host.num_gpus:
        rule = f"is more than the {host.num_gpus} GPUs of this host"
        yield Problem(field="gpus", value=spec.gpus_per_node, rule=rule, way_out="use gpus=auto, or mode=plan")
