"""Whether a cluster's Slurm would ever start a job, asked before the job is written down or queued.

Slurm accepts what it can never start (a time limit above the partition's, more nodes than it has) and lets it wait,
and `sbatch --test-only` says yes to it. So its limits are read and compared here; for the rest its own answer counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from launcher.errors import InputError, Problem, SubmitError
from launcher.scheduler.client import SchedulerRefused, ask
from launcher.scheduler.details import Partition, partitions
from launcher.scheduler.environment import job_environment
from launcher.spec import JobSpec, SlurmSpec

UP = "UP"

# What Slurm says, and what that may mean for what was asked.
MEANINGS = (
    ("Requested node configuration", "no node has as much as is asked of each: look at gpus, cluster.mem, "
     "cluster.cpus_per_node and cluster.gpu_type; `sinfo --Node --long` says what nodes have"),
    ("Invalid feature specification", "no node has the features of cluster.constraint"),
    ("Invalid account", "see cluster.account; `sacctmgr show user withassoc` lists yours"),
    ("Invalid qos", "see cluster.qos"),
    ("Invalid node name", "see cluster.nodelist and cluster.exclude"),
    ("reservation", "see cluster.reservation; `scontrol show reservation` lists them"),
    ("Invalid generic resource", "the site may want cluster.gpu_request=gres, or calls its GPUs otherwise"),
    ("Invalid job array", "the sweep has more cells than the cluster's MaxArraySize"),
    ("memory", "see cluster.mem"),
)  # fmt: skip


def check_site(spec: JobSpec, script: str, environ: Mapping[str, str]) -> None:
    """Raise InputError with everything that the site's limits refuse, or SubmitError with Slurm's own words.

    script: as it would be queued. Nothing is queued. Raises SchedulerSilent where nobody answers.
    """
    check_limits([spec])
    try_script(spec, script, environ)


def check_limits(specs: Sequence[JobSpec]) -> None:
    """Raise InputError with everything that no partition allows of these jobs; each problem once."""
    told = partitions()
    found = {
        str(problem): problem
        for spec in specs
        if spec.cluster.slurm is not None
        for problem in partition_problems(spec, spec.cluster.slurm, told)
    }
    if found:
        raise InputError(found.values())


def most_cells(slurm: SlurmSpec, told: int | None) -> int | None:
    """How many elements an array may have: MaxArraySize, one more than the highest index. None: no limit is known.

    told: by Slurm itself.
    """
    return min((limit for limit in (slurm.max_array_size, told) if limit is not None), default=None)


def try_script(spec: JobSpec, script: str, environ: Mapping[str, str]) -> None:
    """Let Slurm judge a script that it does not get. Raises SubmitError with its words."""
    try:
        environment = job_environment(environ, spec.cluster.environment)
        ask(("sbatch", "--test-only", "/dev/stdin"), env=environment, text_in=script)
    except SchedulerRefused as refused:
        raise SubmitError(f"Slurm would not take the job: {with_meaning(str(refused))}") from None


def with_meaning(said: str) -> str:
    """Slurm's words, and what to look at."""
    for words, meaning in MEANINGS:
        if words.lower() in said.lower():
            return f"{said}: {meaning}"
    return said


def partition_problems(spec: JobSpec, slurm: SlurmSpec, told: Sequence[tuple[Partition, bool]]) -> Iterator[Problem]:
    """What no partition that the job may go to allows; each limit by itself, so that all are said at once."""
    known = {partition.name: partition for partition, _ in told}
    wanted = slurm.partition.split(",") if slurm.partition else [each.name for each, default in told if default]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        rule = "is no partition of this cluster"
        yield Problem(field="cluster.partition", value=",".join(unknown), rule=rule, way_out=f"it has {_list(known)}")
        return
    if not wanted:
        rule, way_out = "has to be given: this cluster has no default", f"use {_list(known)}"
        yield Problem(field="cluster.partition", value="null", rule=rule, way_out=way_out)
        return
    chosen, names = [known[name] for name in wanted], " and ".join(wanted)
    most_nodes = max(partition.most_nodes for partition in chosen)
    if spec.nodes > most_nodes:
        rule = f"is more than the {most_nodes} that a job can have in {names}"
        yield Problem(field="nodes", value=spec.nodes, rule=rule, way_out=f"use {most_nodes} or less")
    limits = [partition.max_time_min for partition in chosen]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and slurm.time_min > longest:
        rule = f"is {slurm.time_min} min, more than the {longest} of {names}: the job would wait for ever"
        way_out = f"use cluster.time={longest} or less: a run that is cut off goes on from its checkpoint"
        yield Problem(field="cluster.time", value=None, rule=rule, way_out=way_out)
    yield from _access(slurm, chosen, names)


def _access(slurm: SlurmSpec, chosen: Sequence[Partition], names: str) -> Iterator[Problem]:
    if slurm.account and not any(_may(slurm.account, each.accounts, each.denied_accounts) for each in chosen):
        rule = f"may not use {names}"
        yield Problem(field="cluster.account", value=slurm.account, rule=rule, way_out="use another partition")
    if slurm.qos and not any(_may(slurm.qos, each.qos, ()) for each in chosen):
        rule = f"is not allowed in {names}"
        yield Problem(field="cluster.qos", value=slurm.qos, rule=rule, way_out="use another partition")
    if not any(each.state == UP for each in chosen):
        states = ", ".join(f"{each.name} is {each.state}" for each in chosen)
        rule = f"takes or starts no jobs now ({states})"
        yield Problem(field="cluster.partition", value=names, rule=rule, way_out="use another, or wait")


def _may(name: str, allowed: Sequence[str], denied: Sequence[str]) -> bool:
    return (not allowed or name in allowed) and name not in denied


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none that you may see"
