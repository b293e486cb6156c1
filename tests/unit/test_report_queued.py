"""What is said of a queued job, and of what a script asks for."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

from launcher.devices import listed_devices
from launcher.planner.plan import make_plan
from launcher.planner.types import MemoryPlan
from launcher.render.asked import asked_of_slurm
from launcher.report.console import make_console
from launcher.report.queued import show_asked, show_queued
from launcher.runs.records import Submission
from launcher.units import GIB
from tests.composed import spec_of

Golden = Callable[[str, str], None]


def plan_of(*overrides: str) -> MemoryPlan:
    plan = make_plan(spec_of("cluster=slurm", *overrides), listed_devices(), propose=False)
    return dataclasses.replace(plan, host_ram_bytes_per_node=20 * GIB, checkpoint_bytes=30 * GIB)


def test_a_queued_job(golden: Golden) -> None:
    plan = plan_of("device=h100-80g", "gpus=8", "nodes=2", "cluster.partition=gpu")
    submission = Submission(number=1, cluster="slurm", job_name="fitlaunch-x", time_s=0.0, job_id="17")
    out = io.StringIO()
    show_queued(submission, plan.spec, asked_of_slurm(plan), "/data/runs/x", make_console(out))
    golden("report/queued.txt", out.getvalue())


def test_what_a_script_asks_for(golden: Golden) -> None:
    plan = plan_of("device=cpu", "gpus=2", "cluster.mem=0", "cluster.requeue=false", "cluster.lead_s=90")
    out = io.StringIO()
    show_asked(plan.spec, asked_of_slurm(plan), make_console(out))
    golden("report/asked.txt", out.getvalue())
