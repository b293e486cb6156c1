"""The rules across fields: which combinations exist, and the way out of those that do not.

Each rule is a function from a Case to the problems it finds. What is refused here is what the pinned libraries
cannot do, or would do silently wrong; RULES is the whole table.
"""

from __future__ import annotations

from launcher.errors import Problem
from launcher.host import Host
from launcher.models import ModelShape
from launcher.rules import cluster, hosts, job, target
from launcher.rules.case import Case, Rule
from launcher.rules.job import OFFLOADS
from launcher.spec import JobSpec, Mode

__all__ = ["OFFLOADS", "RULES", "broken_rules"]

RULES: tuple[Rule, ...] = (
    target.target_exists,
    target.host_has_devices,
    *cluster.RULES,
    *hosts.RULES,
    job.ranks_to_shard_over,
    job.offload_exists,
    job.launcher_can_start,
    job.optimizer_exists,
    job.precision_exists,
    job.attention_exists,
    job.loss_exists,
    job.checkpointing_exists,
    job.optional_packages,
    job.method_options,
    job.lora_targets,
    job.quantisation_dtypes,
    job.eight_bit_base_exists,
    job.global_batch_divides,
    job.sequence_fits_model,
    job.data_is_there,
)


def broken_rules(spec: JobSpec, shape: ModelShape, mode: Mode, host: Host) -> tuple[Problem, ...]:
    """Every problem that the rules find, in the order of the table."""
    case = Case(spec=spec, shape=shape, mode=mode, host=host)
    return tuple(problem for rule in RULES for problem in rule(case))
