"""Jobs for a list of hosts, and what hosts say of themselves, for the tests of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from launcher.spec import ClusterKind, ClusterSpec, HostSlots, HostsSpec, JobSpec
from launcher.targets.probe import Probed
from tests.launching import make_spec

TWO = (HostSlots(host="node1", slots=2), HostSlots(host="node2", slots=2))


def hosts_spec(
    hosts: Sequence[HostSlots] = TWO,
    *,
    environment: Sequence[str] = (),
    network_interface: str | None = None,
    **options: Any,
) -> JobSpec:
    """A job for these hosts, with two ranks on each."""
    cluster = ClusterSpec(
        kind=ClusterKind.HOSTS,
        name="hosts",
        network_interface=network_interface,
        environment=tuple(environment),
        hosts=HostsSpec(hostfile="/home/me/hosts", hosts=tuple(hosts)),
    )
    return dataclasses.replace(make_spec(**options), cluster=cluster, nodes=len(hosts))


def probed(**changes: Any) -> Probed:
    """A host that may take part in a job on two hosts, with changes."""
    found: dict[str, Any] = {
        "hostname": "node2",
        "versions": {"fitlaunch": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "code_hash": "c0de" * 16,
        "nonce": "n0nce",
        "can_write": True,
        "missing_paths": (),
        "address": "10.0.0.2",
        "interface": "eth0",
        "own_name_is_loopback": False,
        "heads_address": "10.0.0.1",
        "num_cores": 16,
        "ram_available_bytes": 64 << 30,
        "num_gpus": 0,
        "num_gpus_in_use": 0,
        "gpu_names": (),
        "gpu_bytes": None,
        "gpu_problem": None,
        "num_left": 0,
        "port": 23_456,
    }
    return Probed(**found | changes)
