"""Rules about clusters: what may be said to a scheduler or to other hosts, and what the site is known to limit."""

from __future__ import annotations

from collections.abc import Iterator

from launcher import allowed
from launcher.allowed import Form
from launcher.errors import Problem
from launcher.rules.case import Case
from launcher.spec import ClusterKind, GpuRequest, Program

OF_ANY: dict[str, Form] = {"network_interface": allowed.INTERFACES, "environment": allowed.VARIABLE}
OF_SLURM: dict[str, Form] = {
    "partition": allowed.NAMES,
    "account": allowed.NAME,
    "qos": allowed.NAME,
    "reservation": allowed.NAMES,
    "constraint": allowed.CONSTRAINT,
    "nodelist": allowed.NODES,
    "exclude": allowed.NODES,
    "gpu_type": allowed.NAME,
    "container": allowed.CONTAINER,
    "container_mounts": allowed.MOUNT,
    "setup": allowed.SHELL_LINE,
}
"""What each option may look like; of a list, each of its entries."""

MOST_LEAD_S = 65_535
"""man sbatch, --signal: the most seconds before a time limit."""


def values_are_allowed(case: Case) -> Iterator[Problem]:
    """What reaches a script, a scheduler or ssh has a known form, so that nothing in it can be taken for more."""
    cluster = case.spec.cluster
    yield from _values(cluster, OF_ANY)
    if cluster.slurm is not None:
        yield from _values(cluster.slurm, OF_SLURM)


def _values(owner: object, forms: dict[str, Form]) -> Iterator[Problem]:
    for name, form in forms.items():
        value = getattr(owner, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and not form.matches(each):
                shown = repr(each)  # it may hold what a terminal would act on
                yield Problem(field=f"cluster.{name}", value=shown, rule="is not allowed", way_out=f"give {form.words}")


def secrets_stay_away(case: Case) -> Iterator[Problem]:
    """slurmctld keeps a job's environment and script, and shows them to whoever may ask for them."""
    if case.spec.cluster.slurm is None:
        return
    way_out = "leave it out, and log in once where the nodes share your home: wandb login, hf auth login"
    for name in case.spec.cluster.environment:
        if allowed.looks_secret(name):
            rule = "would be stored by Slurm with its value"
            yield Problem(field="cluster.environment", value=name, rule=rule, way_out=way_out)
    for line in case.spec.cluster.slurm.setup:
        for name in allowed.secrets_set_by(line):
            rule = "would stand in the script, which Slurm stores"
            yield Problem(field="cluster.setup", value=f"{name}=...", rule=rule, way_out=way_out)


def launcher_can_be_queued(case: Case) -> Iterator[Problem]:
    """DeepSpeed's launcher reaches other nodes by pdsh and ssh, around Slurm, which then neither counts nor ends it."""
    if case.spec.cluster.kind is ClusterKind.SLURM and case.spec.program is Program.DEEPSPEED:
        rule = "starts ranks by ssh, where Slurm neither limits nor ends them"
        way_out = "use launcher=torchrun: it hosts the DeepSpeed engine as well"
        yield Problem(field="launcher", value="deepspeed", rule=rule, way_out=way_out)


def site_allows(case: Case) -> Iterator[Problem]:
    """What the profile says of its site; Slurm accepts a job beyond its limits, and lets it wait for ever."""
    slurm = case.spec.cluster.slurm
    if slurm is None:
        return
    if slurm.max_nodes is not None and case.spec.nodes > slurm.max_nodes:
        rule = f"is more than the {slurm.max_nodes} that {case.spec.cluster.name} allows (cluster.max_nodes)"
        yield Problem(field="nodes", value=case.spec.nodes, rule=rule, way_out=f"use {slurm.max_nodes} or less")
    if slurm.max_time_min is not None and slurm.time_min > slurm.max_time_min:
        rule = f"is {slurm.time_min} min, more than the {slurm.max_time_min} that {case.spec.cluster.name} allows"
        way_out = f"use {slurm.max_time_min} or less: a run that is cut off goes on from its checkpoint"
        yield Problem(field="cluster.time", value=None, rule=rule, way_out=way_out)
    if slurm.lead_s is not None and slurm.lead_s >= slurm.time_min * 60:
        rule = f"leaves no time to train: the job has {slurm.time_min * 60} s in all"
        yield Problem(field="cluster.lead_s", value=slurm.lead_s, rule=rule, way_out="use less, or auto")
    elif slurm.lead_s is not None and slurm.lead_s > MOST_LEAD_S:
        rule = "is more than Slurm's --signal takes"
        yield Problem(field="cluster.lead_s", value=slurm.lead_s, rule=rule, way_out=f"use {MOST_LEAD_S} or less")
    if slurm.gpu_type is not None and slurm.gpu_request is GpuRequest.NONE:
        rule = "has no effect with cluster.gpu_request=none"
        yield Problem(field="cluster.gpu_type", value=slurm.gpu_type, rule=rule, way_out="leave it out")


RULES = (values_are_allowed, secrets_stay_away, launcher_can_be_queued, site_allows)
