"""A change of a job, and the ways in which a job is rebuilt so that it stays one that the rules allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from launcher.precision import COMPUTE
from launcher.shards import shard_defaults, storage_dtype
from launcher.spec import JobSpec, MethodKind, Offload, ShardKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to do differently: what to type for it, the words for it, and the job it makes of another."""

    overrides: tuple[str, ...]
    note: str
    apply: Callable[[JobSpec], JobSpec]

    @property
    def keys(self) -> frozenset[str]:
        """The options it sets."""
        return frozenset(override.partition("=")[0] for override in self.overrides)


def applied(changes: Iterable[Change], spec: JobSpec) -> JobSpec:
    """The job after all changes, in their order."""
    for change in changes:
        spec = change.apply(spec)
    return spec


def with_train(job: JobSpec, **values: object) -> JobSpec:
    """The job with other values in its train section."""
    return dataclasses.replace(job, train=dataclasses.replace(job.train, **values))  # type: ignore[arg-type]


def resharded(job: JobSpec, kind: ShardKind, offload: Offload, hidden_size: int) -> JobSpec:
    """The job under another sharding with its default sizes; how quantised weights are stored follows the sharding."""
    shard = job.shard
    if kind is not shard.kind:
        shard = shard_defaults(kind, hidden_size, on_cuda=job.device.kind == "cuda")
    method = job.method
    if method.kind is MethodKind.QLORA:
        stored = storage_dtype(method.quant_type, kind, COMPUTE[job.train.precision])
        method = dataclasses.replace(method, storage_dtype=stored)
    return dataclasses.replace(job, shard=dataclasses.replace(shard, offload=offload), method=method)
