"""fitlaunch doctor: compose the job, ask every node that it may run on, and judge what they say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from launcher.assemble import assemble, read_words
from launcher.compose import make_spec
from launcher.devices import listed_devices
from launcher.host import Host
from launcher.operate.doctor.here import check_here
from launcher.operate.doctor.judge import Wanted, findings
from launcher.operate.doctor.output import read_output
from launcher.operate.doctor.reach import Say, ask_nodes, new_round
from launcher.operate.doctor.types import Answers, Checkup, Finding
from launcher.planner.calibration import load_constants
from launcher.planner.plan import make_plan
from launcher.planner.types import MemoryPlan
from launcher.spec import ClusterKind
from launcher.targets.facts import code_hash, versions
from launcher.targets.space import disk_need

# Nobody trains: a batch that is a multiple of nearly any number of ranks, and takes as little memory as one can.
ANY_BATCH = ("train.global_batch=80640", "train.micro_batch=1")


def check_up(
    words: Sequence[str], conf_dir: Path, host: Host, say: Say, *, all_reduce: bool, patience_s: float
) -> tuple[Checkup, Path | None]:
    """The check-up of the nodes that a job would run on, and the folder of its logs where something is wrong.

    words: of launch.py. Raises InputError for words that are wrong; SubmitError where the nodes cannot be asked.
    """
    given = {word.key for word in read_words(words, conf_dir)}
    batch = () if given & {"train.global_batch", "train.micro_batch"} else ANY_BATCH
    conf = assemble(["mode=plan", *batch, *words], conf_dir)
    spec = make_spec(conf, host)
    plan = make_plan(spec, listed_devices(), load_constants(os.environ), propose=False)
    runs_dir = Path(conf["runs_dir"]).expanduser().absolute()
    wrong_here = tuple(check_here(spec, runs_dir, disk_need(plan).least_bytes))
    if wrong_here:
        return Checkup(kind=spec.cluster.kind.value, answers=Answers(), findings=wrong_here), None
    made = new_round(spec, runs_dir, all_reduce=all_reduce, patience_s=patience_s)
    before = code_hash()
    try:
        text = ask_nodes(made, say)
    except BaseException:
        shutil.rmtree(made.folder, ignore_errors=True)
        raise
    answers = read_output(text)
    found = judged(answers, wanted_of(plan, frozenset({before, code_hash()}), all_reduce=all_reduce))
    if not found:
        shutil.rmtree(made.folder, ignore_errors=True)
        return Checkup(kind=spec.cluster.kind.value, answers=answers, findings=()), None
    (made.folder / "output.txt").write_text(text)
    return Checkup(kind=spec.cluster.kind.value, answers=answers, findings=found), made.folder


def judged(answers: Answers, wanted: Wanted) -> tuple[Finding, ...]:
    """What is wrong with the nodes; where nobody said anything, that alone."""
    if not answers.hosts and not answers.reports:
        rule = "no node said anything" + (f": {answers.rest[-1]}" if answers.rest else "")
        way_out = "the folder of the runs may not be seen by the nodes: use runs_dir=DIR on a shared file system"
        return (Finding(node=None, rule=rule, way_out=way_out),)
    return findings(answers, wanted)


def wanted_of(plan: MemoryPlan, code_hashes: frozenset[str], *, all_reduce: bool) -> Wanted:
    """What the nodes of a planned job are to be."""
    spec = plan.spec
    return Wanted(
        num_nodes=spec.nodes,
        ranks_per_node=spec.gpus_per_node,
        device=spec.device,
        versions=versions(),
        code_hashes=code_hashes,
        # A job's own limit is asked for besides, from the plan: what is free of it says nothing.
        ram_bytes=0 if spec.cluster.kind is ClusterKind.SLURM else plan.host_ram_bytes_per_node,
        disk_bytes=disk_need(plan).least_bytes,
        with_all_reduce=all_reduce,
    )
