"""LaunchPlan: exactly what will be started, frozen and hashed."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.spec import content_hash, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What was printed is what runs.

    argv: the command, as a tuple; never a shell string.
    env: the difference to the launcher's own environment; never a secret.
    files: path relative to the run folder -> text, all written before anything starts.
    """

    run_id: str
    run_dir: str
    argv: tuple[str, ...]
    env: dict[str, str]
    files: dict[str, str]

    @property
    def hash(self) -> str:
        """sha256 over all of it; the ranks refuse to start when it no longer matches the run folder."""
        return content_hash(to_json(self))
