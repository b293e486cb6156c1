"""Before a job is traced: small programs whose bytes are known by hand, so that a replacement that broke is noticed."""

from __future__ import annotations

from jobs.tracing.target import Target


class SelfTestFailed(RuntimeError):
    """The tracer does not record what it must: its answers would be wrong."""


def run(target: Target) -> None:
    """Raise SelfTestFailed unless a known program is recorded with its exact bytes."""
