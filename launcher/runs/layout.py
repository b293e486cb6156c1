"""The run folder: where everything of a run lies. Paths only; nothing here touches the disk.

runs/<id>/
  launch.json               the frozen LaunchPlan; launch.sha256 holds its hash
  job.json                  the JobSpec the ranks read
  memory_plan.json          the MemoryPlan
  deepspeed.json | fsdp.json    only where the sharding has one
  state.json                what the launcher knows (records.RunState), rewritten atomically
  events.jsonl              stages, one JSON line each, appended by launcher and rank 0
  metrics.jsonl             training and evaluation metrics, rank 0 only
  job.sh                    the sbatch script, where a scheduler starts the run
  hostfile                  the hosts of the run and their slots, where it has several
  submission.json           how it was last handed to a scheduler
  control/stop-<attempt>    exists: every rank stops at the end of its step; its first line says why
  control/cancelled         exists: the user cancelled the run; no attempt starts until it is resumed
  control/lease-<attempt>   rewritten by the launcher as long as it lives, for ranks on hosts that have no agent
  control/job-<submission>  the one job that may run under this submission; whoever comes second ends at once
  attempts/<k>/             one folder a start; one is fenced off once a later one has an attempt.json:
    attempt.json                                by the head node: job id, where the nodes meet
    started.json finished.json stopped.json     markers, written last, by rank 0
    failed-rank-<r>.json                        by the rank that failed
    measured-rank-<r>.json                      memory, by every rank
    refused                                     by the head node: why this start came to nothing; it does not count
    requeue                                     by the head node: this attempt stopped in order, and may go on
    diagnosis.json                              who failed first, of what: by whoever asked first after it had failed
    judged                                      by the head node, last of all: how the attempt ended is written down
    node-<n>/ranks.json                         which ranks are on a node, by its agent
    node-<n>/end.json                           how they ended, by its agent, last
    node-<n>/logs/                              by the program that starts the ranks there
  checkpoints/checkpoint-<step>/manifest.json   written last; without it the checkpoint does not count
  result/                   adapter or model, with its own manifest.json
  merged/                   the adapter merged into its base, by `fitlaunch merge`
  report.json loss.png      made by the launcher at the end
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names of the files in one run folder."""

    root: Path

    @property
    def launch(self) -> Path:
        return self.root / "launch.json"

    @property
    def launch_hash(self) -> Path:
        return self.root / "launch.sha256"

    @property
    def job(self) -> Path:
        return self.root / "job.json"

    @property
    def memory_plan(self) -> Path:
        return self.root / "memory_plan.json"

    @property
    def deepspeed(self) -> Path:
        return self.root / "deepspeed.json"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def first_example(self) -> Path:
        return self.root / "first_example.txt"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def result(self) -> Path:
        return self.root / "result"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def report(self) -> Path:
        return self.root / "report.json"

    @property
    def loss_curve(self) -> Path:
        return self.root / "loss.png"

    @property
    def script(self) -> Path:
        return self.root / "job.sh"

    @property
    def hostfile(self) -> Path:
        return self.root / "hostfile"

    @property
    def submission(self) -> Path:
        return self.root / "submission.json"

    @property
    def cancelled(self) -> Path:
        return self.root / "control" / "cancelled"

    def lease(self, attempt: int) -> Path:
        return self.root / "control" / f"lease-{attempt}"

    def job_claim(self, submission: int) -> Path:
        return self.root / "control" / f"job-{submission}"

    def attempt_start(self, attempt: int) -> Path:
        return self.attempt(attempt) / "attempt.json"

    def diagnosis(self, attempt: int) -> Path:
        return self.attempt(attempt) / "diagnosis.json"

    def requeue(self, attempt: int) -> Path:
        return self.attempt(attempt) / "requeue"

    def node(self, attempt: int, node: int) -> Path:
        return self.attempt(attempt) / f"node-{node}"

    def refused(self, attempt: int) -> Path:
        return self.attempt(attempt) / "refused"

    def judged(self, attempt: int) -> Path:
        return self.attempt(attempt) / "judged"

    def node_ranks(self, attempt: int, node: int) -> Path:
        return self.node(attempt, node) / "ranks.json"

    def node_end(self, attempt: int, node: int) -> Path:
        return self.node(attempt, node) / "end.json"

    def stop_file(self, attempt: int) -> Path:
        return self.root / "control" / f"stop-{attempt}"

    def attempt(self, attempt: int) -> Path:
        return self.root / "attempts" / str(attempt)

    def logs(self, attempt: int, node: int = 0) -> Path:
        return self.node(attempt, node) / "logs"

    def started(self, attempt: int) -> Path:
        return self.attempt(attempt) / "started.json"

    def finished(self, attempt: int) -> Path:
        return self.attempt(attempt) / "finished.json"

    def stopped(self, attempt: int) -> Path:
        return self.attempt(attempt) / "stopped.json"

    def failed(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / f"failed-rank-{rank}.json"

    def measured(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / f"measured-rank-{rank}.json"
