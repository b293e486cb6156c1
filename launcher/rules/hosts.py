"""Rules about a list of hosts: what ssh and pdsh can carry, and where the nodes can meet."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.allowed import PATH, looks_secret
from launcher.errors import Problem
from launcher.hostfile import host_name
from launcher.rules.case import Case
from launcher.spec import ClusterKind, Mode, Program


def head_is_reached(case: Case) -> Iterator[Problem]:
    """All nodes meet at the first host, by its name in the file."""
    spec = case.spec.cluster.hosts
    if spec is None or len(spec.hosts) < 2:
        return
    head = host_name(spec.hosts[0].host)
    if head == "localhost" or head.startswith("127."):
        rule = f"begins with {head}, which is another host for each of the others"
        way_out = "name the host as the others reach it"
        yield Problem(field="cluster.hostfile", value=spec.hostfile, rule=rule, way_out=way_out)


def no_secret_on_a_command_line(case: Case) -> Iterator[Problem]:
    """pdsh carries the environment on a command line, which every user of a host can read; ssh to our own agents
    carries it through a pipe."""
    cluster = case.spec.cluster
    if cluster.kind is not ClusterKind.HOSTS or case.spec.program is not Program.DEEPSPEED:
        return
    for name in cluster.environment:
        if looks_secret(name):
            rule = "looks like a secret, and DeepSpeed's launcher would show it on every host's command line"
            yield Problem(field="cluster.environment", value=name, rule=rule, way_out="use launcher=torchrun")


def paths_go_over_ssh(case: Case) -> Iterator[Problem]:
    """Every host is asked whether it has the files; a path is a word of that command."""
    spec = case.spec
    if spec.cluster.kind is not ClusterKind.HOSTS or case.mode is Mode.PLAN:
        return
    paths = (("model.path", spec.model.path), ("data.path", spec.data.path), ("data.eval_path", spec.data.eval_path))
    for field, path in paths:
        if path is not None and not PATH.matches(path):
            yield Problem(field=field, value=path, rule="cannot be said over ssh", way_out=f"give {PATH.words}")


RULES = (head_is_reached, no_secret_on_a_command_line, paths_go_over_ssh)
