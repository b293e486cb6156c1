"""The environment of one node's ranks: the launch plan's, and what is known only when an attempt starts there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from launcher.node.address import interface_of
from launcher.render.environment import inherited_environment
from launcher.render.types import LaunchPlan
from launcher.runs.processes import this_process

ATTEMPT = "FITLAUNCH_ATTEMPT"
NODE = "FITLAUNCH_NODE"


def rank_environment(
    launch: LaunchPlan,
    inherited: Mapping[str, str],
    *,
    attempt: int,
    node: int = 0,
    job_id: str | None = None,
) -> dict[str, str]:
    """What the ranks of a node get; this process is the one that must stay alive while they run."""
    environment = {
        **inherited_environment(inherited),
        **launch.env,
        ATTEMPT: str(attempt),
        NODE: str(node),
        "FITLAUNCH_PLAN_HASH": launch.hash,
        "FITLAUNCH_LAUNCHER": str(this_process()),
    }
    return environment if job_id is None else environment | {"FITLAUNCH_JOB_ID": job_id}


def with_network(environment: Mapping[str, str], address: str) -> dict[str, str]:
    """Where nobody chose an interface for gloo, the one with this node's address: by itself gloo takes the address of
    the host's name, which may be one that no other host reaches."""
    interface = interface_of(address)
    if interface is None or "GLOO_SOCKET_IFNAME" in environment:
        return dict(environment)
    return {**environment, "GLOO_SOCKET_IFNAME": interface}


def with_threads(environment: Mapping[str, str], launch: LaunchPlan, num_ranks: int) -> dict[str, str]:
    """Where the plan leaves it to the node, each rank gets its share of the cores that the node's ranks may use."""
    if "OMP_NUM_THREADS" in launch.env:
        return dict(environment)
    return {**environment, "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // num_ranks))}


def belongs_to(attempt: int, node: int) -> Callable[[Mapping[str, str]], bool]:
    """Tells by its environment whether a process is one of this attempt's on this node."""

    def belongs(environment: Mapping[str, str]) -> bool:
        return environment.get(ATTEMPT) == str(attempt) and environment.get(NODE) == str(node)

    return belongs


def is_of_earlier_attempt(attempt: int) -> Callable[[Mapping[str, str]], bool]:
    """Tells whether a process was left behind by an attempt before this one."""

    def is_earlier(environment: Mapping[str, str]) -> bool:
        number = environment.get(ATTEMPT, "")
        return number.isdecimal() and int(number) < attempt

    return is_earlier
