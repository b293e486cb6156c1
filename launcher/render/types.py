"""LaunchPlan: exactly what will be started, frozen and hashed."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from launcher.spec import JobSpec, content_hash, to_json

NODE_FIELDS = ("{node_rank}", "{head}", "{port}", "{address}", "{is_head}", "{rendezvous}")
"""Stand in argv for: this node's number; where the head node is reached, and the port there; this node's own address;
1 on the head and 0 elsewhere; a name that no other attempt of any run has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What was printed is what runs.

    argv: the command that starts the ranks of one node, as a tuple; never a shell string. On several nodes it has
        the words of NODE_FIELDS, which are known when an attempt starts on them.
    env: the difference to the launcher's own environment; never a secret.
    files: path relative to the run folder -> text, all written before anything starts.
    submit: the command that queues the job, where a scheduler does; its last word, the number of the submission, is
        added when it is run.
    """

    run_id: str
    run_dir: str
    argv: tuple[str, ...]
    env: dict[str, str]
    files: dict[str, str]
    submit: tuple[str, ...] = ()

    @property
    def job(self) -> JobSpec:
        """The job, as its ranks read it."""
        return msgspec.json.decode(self.files["job.json"], type=JobSpec)

    @property
    def hash(self) -> str:
        """sha256 over all of it; the ranks refuse to start when it no longer matches the run folder."""
        return content_hash(to_json(self))
