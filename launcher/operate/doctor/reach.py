"""The command that runs on each node, and how it is reached: by Slurm, by ssh, or on this host."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import Interrupted, SubmitError
from launcher.hostfile import host_name
from launcher.node.signals import collect_stop_requests
from launcher.operate.doctor.output import NODES
from launcher.operate.queue import SlurmQueue
from launcher.render.asked import Asked
from launcher.render.sbatch import Script, job_name, refuse_odd_paths, sbatch_options
from launcher.runs.records import Submission, write_atomically
from launcher.runs.registry import find_job
from launcher.runs.status import waiting_words
from launcher.scheduler.client import SchedulerRefused, ask
from launcher.scheduler.environment import job_environment
from launcher.scheduler.jobs import cancel_argv
from launcher.spec import ClusterKind, JobSpec
from launcher.targets.site import with_meaning
from launcher.targets.slurm import parse_job_id
from launcher.targets.ssh import ask_hosts
from launcher.units import GIB

MODULE = "launcher.operate.doctor.node"
# All that a node waits for, and the start of its interpreter over a network file system.
NODE_TIMEOUT_S = 240.0
JOB_MIN = 10
POLL_S = 1.0
# What one rank takes that only imports torch and reduces 16 MiB.
RANK_BYTES = 2 * GIB

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One check-up. folder: shared by the nodes, and made for this. patience_s: how long the job may wait to start."""

    spec: JobSpec
    folder: Path
    nonce: str
    all_reduce: bool
    patience_s: float

    def words(self, node: int | None, head: str) -> tuple[str, ...]:
        """The command for a node; None: for all of them, each of which knows its number from Slurm."""
        spec = self.spec
        given = (spec.model.path, spec.data.path, spec.data.eval_path)
        words = [sys.executable, "-P", "-m", MODULE, str(self.folder)]
        words += [f"--num-nodes={spec.nodes}", f"--nonce={self.nonce}", f"--head={head}"]
        words += [f"--ranks={spec.gpus_per_node}", f"--device={spec.device.kind}"]
        words += [f"--path={path}" for path in given if path is not None]
        words += [] if node is None else [f"--node-rank={node}"]
        words += [f"--interface={spec.cluster.network_interface}"] if spec.cluster.network_interface else []
        return tuple(words + ["--all-reduce"] * self.all_reduce)


def new_round(spec: JobSpec, runs_dir: Path, *, all_reduce: bool, patience_s: float) -> Round:
    """A folder of its own among the runs, with the nonce in it. Raises SubmitError where it cannot be written."""
    token = secrets.token_hex(4)
    folder = runs_dir / "doctor" / f"{time.strftime('%Y%m%d-%H%M%S')}-{token}"
    made = Round(spec=spec, folder=folder, nonce=token, all_reduce=all_reduce, patience_s=patience_s)
    try:
        write_atomically(folder / "nonce", token)
        (folder / "nonce").chmod(0o644)
    except OSError as error:
        raise SubmitError(f"{folder} cannot be written: {error.strerror or error}") from error
    return made


def ask_nodes(made: Round, say: Say) -> str:
    """What all nodes print. Raises SubmitError where they could not be asked, Interrupted where the user stops it."""
    kind = made.spec.cluster.kind
    if kind is ClusterKind.SLURM:
        return _by_slurm(made, say)
    return _by_ssh(made, say) if kind is ClusterKind.HOSTS else _here(made, say)


def _here(made: Round, say: Say) -> str:
    say("checking this host")
    with collect_stop_requests() as requests, (made.folder / "errors.txt").open("wb") as errors:
        process = subprocess.Popen(
            made.words(0, "localhost"), stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        end = time.monotonic() + NODE_TIMEOUT_S
        while True:
            try:
                out, _ = process.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired:
                if requests.first is not None or time.monotonic() > end:
                    process.terminate()
        if requests.first is not None:
            raise Interrupted("the check-up was stopped")
    errors_text = (made.folder / "errors.txt").read_text(errors="replace")
    return f"{NODES} {os.uname().nodename}\n{out}\n" + "".join(f"0: {line}\n" for line in errors_text.splitlines())


def _by_ssh(made: Round, say: Say) -> str:
    assert made.spec.cluster.hosts is not None
    hosts = made.spec.cluster.hosts.hosts[: made.spec.nodes]
    head = host_name(hosts[0].host)
    say(f"asking {', '.join(each.host for each in hosts)}")
    with collect_stop_requests() as requests:
        answers = ask_hosts(
            {each.host: made.words(node, head) for node, each in enumerate(hosts)},
            timeout_s=NODE_TIMEOUT_S,
            is_stopped=lambda: requests.first is not None,
        )
        if requests.first is not None:
            raise Interrupted("the check-up was stopped")
    lines = [f"{NODES} {' '.join(host_name(each.host) for each in hosts)}"]
    for node, answer in enumerate(answers):
        lines += [f"{node}: {line}" for line in (*answer.out.splitlines(), *answer.err.splitlines())]
    return "\n".join(lines)


# Slurm


def _by_slurm(made: Round, say: Say) -> str:
    script = made.folder / "doctor.sh"
    write_atomically(script, slurm_script(made))
    environment = job_environment(os.environ, made.spec.cluster.environment)
    with collect_stop_requests() as requests:
        try:
            job_id = parse_job_id(ask(("sbatch", "--parsable", str(script)), env=environment))
        except SchedulerRefused as refused:
            raise SubmitError(f"Slurm would not take the check-up: {with_meaning(str(refused))}") from None
        say(f"asking {made.spec.nodes} nodes by job {job_id}")
        try:
            _wait_for(job_id, made, say, lambda: requests.first is not None)
        except BaseException:
            ask(cancel_argv((job_id,)))
            raise
    path = made.folder / f"slurm-{job_id}.out"
    return path.read_text(errors="replace") if path.exists() else ""


def _wait_for(job_id: str, made: Round, say: Say, is_stopped: Callable[[], bool]) -> None:
    """Until the job is over; what it waits for is said when that changes."""
    queue = SlurmQueue(max_age_s=POLL_S)
    submission = Submission(number=1, cluster="", job_name=_name(made), time_s=time.time(), job_id=job_id)
    told, end = "", time.monotonic() + made.patience_s
    while True:
        if is_stopped():
            raise Interrupted("the check-up was stopped; its job is cancelled")
        jobs = queue.jobs()
        job = None if jobs is None else find_job(jobs, submission)
        if jobs is not None and (job is None or job.is_over):
            return
        if job is not None and job.is_waiting:
            words = waiting_words(job)
            if words != told:
                say(words)
            told = words
            if time.monotonic() > end:
                raise SubmitError(f"{words}: not started within {made.patience_s:.0f} s, and cancelled (--patience)")
        time.sleep(POLL_S)


def slurm_script(made: Round) -> str:
    """A job like the run's own, on as many nodes of the same kind, for a few minutes."""
    spec = made.spec
    assert spec.cluster.slurm is not None
    slurm = spec.cluster.slurm
    memory = 0 if slurm.memory_bytes_per_node == 0 else RANK_BYTES * (spec.gpus_per_node + 1)
    asked = Asked(memory_bytes_per_node=memory, memory_words="", lead_s=0, lead_words="")
    script = Script(
        spec=spec, asked=asked, name=_name(made).removeprefix(job_name("")), folder=str(made.folder),
        python=sys.executable, script_name="doctor.sh",
    )  # fmt: skip
    refuse_odd_paths(script)
    # Its own time, no signal before the end of that, and once only.
    changed = ("--time=", "--signal=", "--requeue", "--no-requeue")
    options = [option for option in sbatch_options(script) if not option.startswith(changed)]
    container = f"--container-image='{slurm.container}' " if slurm.container else ""
    mounts = ",".join((str(made.folder), *slurm.container_mounts))
    mounted = f"--container-mounts='{mounts}' " if slurm.container else ""
    words = [f"'{word}'" if word != HEAD_WORD else '"$HEAD_NODE"' for word in _split_head(made.words(None, HEAD_WORD))]
    return "\n".join(
        (
            "#!/bin/bash",
            "# Written by fitlaunch doctor: every node says what it finds, then all of them reduce a tensor.",
            *(f"#SBATCH {option}" for option in (*options, f"--time={JOB_MIN}", "--no-requeue")),
            *slurm.setup,
            "set -u",
            'NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr "\\n" " ")',
            f'echo "{NODES} $NODES"',
            "HEAD_NODE=${NODES%% *}",
            f"srun --label --nodes={spec.nodes} --ntasks-per-node=1 --wait=0 --kill-on-bad-exit=0 --cpu-bind=none "
            f"{container}{mounted}{' '.join(words)}",
            "exit 0",
            "",
        )
    )


HEAD_WORD = "@head"


def _split_head(words: tuple[str, ...]) -> tuple[str, ...]:
    """--head=X as two words, so that the second can be the shell's own."""
    return tuple(part for word in words for part in (word.split("=", 1) if word.startswith("--head=") else (word,)))


def _name(made: Round) -> str:
    return job_name(f"doctor-{made.nonce}")
