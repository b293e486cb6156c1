"""Node agents as processes of this host, which stands in for several nodes; and the proof that nothing is left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from launcher.render.types import LaunchPlan
from launcher.runs.layout import RunFolder
from launcher.runs.markers import read_node_ends
from launcher.runs.processes import ProcessId, end_processes, processes_of_run, read_environment
from launcher.runs.records import NodeEnd, RunState, read_record
from launcher.runs.tail import read_metrics
from launcher.spec import ClusterKind, ClusterSpec, GpuRequest, HostSlots, HostsSpec, JobSpec, SlurmSpec
from launcher.targets.folder import write_run_folder
from launcher.targets.ports import choose_port, port_is_free
from tests.faults.harness import ROOT, TIMEOUT_S, assert_no_half_written_file, wait_for, with_stubs
from tests.launching import make_launch, make_spec

SLURM = SlurmSpec(
    partition=None,
    account=None,
    qos=None,
    reservation=None,
    constraint=None,
    nodelist=(),
    exclude=(),
    gpu_request=GpuRequest.NONE,
    gpu_type=None,
    cpus_per_node=None,
    memory_bytes_per_node=0,
    time_min=10,
    lead_s=60,
    requeue=True,
    max_attempts=10,
    setup=(),
    container=None,
    container_mounts=(),
    max_nodes=None,
    max_time_min=None,
    max_array_size=None,
    max_parallel=None,
)


def on_hosts(spec: JobSpec, nodes: int) -> JobSpec:
    """The job on a list of hosts, all of them this one."""
    hosts = tuple(HostSlots(host=f"node{node}", slots=spec.gpus_per_node) for node in range(nodes))
    cluster = ClusterSpec(kind=ClusterKind.HOSTS, name="hosts", hosts=HostsSpec(hostfile="/hosts", hosts=hosts))
    return dataclasses.replace(spec, cluster=cluster, nodes=nodes)


def on_slurm(spec: JobSpec, nodes: int, **options: object) -> JobSpec:
    """The job on a Slurm cluster."""
    slurm = dataclasses.replace(SLURM, **options)  # type: ignore[arg-type]
    cluster = ClusterSpec(kind=ClusterKind.SLURM, name="slurm", slurm=slurm)
    return dataclasses.replace(spec, cluster=cluster, nodes=nodes)


def stub_job(tmp_path: Path, *, gpus: int = 1) -> JobSpec:
    """A job whose model is there, but only in name."""
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    spec = make_spec(source="path", gpus=gpus)
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, path=str(model)))


def stub_run(
    runs_dir: Path, spec: JobSpec, *, real_torchrun: bool = False, steps: int = 100_000, **stub: str
) -> tuple[RunFolder, LaunchPlan]:
    """The run folder of a job whose ranks are stubs."""
    launch = make_launch(runs_dir, spec=spec, run_id="run", python=sys.executable)
    joined = {"STUB_JOIN": "1"} if real_torchrun else {}
    launch = with_stubs(launch, real_torchrun=real_torchrun, STUB_STEPS=str(steps), **joined, **stub)
    return write_run_folder(launch, now_s=time.time()), launch


@dataclasses.dataclass
class Nodes:
    """The agents of one attempt."""

    run: RunFolder
    launch: LaunchPlan
    attempt: int
    port: int
    agents: list[subprocess.Popen[bytes]]
    outputs: list[Path]

    def say(self) -> str:
        texts = [path.read_text() for path in self.outputs]
        texts += [path.read_text() for path in sorted(self.run.attempt(self.attempt).rglob("*.log"))]
        return "\n".join(text[-3000:] for text in texts)

    def wait(self, timeout_s: float = TIMEOUT_S) -> list[int]:
        """The agents' exit codes."""
        end = time.monotonic() + timeout_s
        for agent in self.agents:
            try:
                agent.wait(timeout=max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"an agent did not end: {self.say()}") from None
        return [agent.returncode for agent in self.agents]

    def wait_for_steps(self, count: int = 3) -> None:
        def has_stepped() -> bool:
            return sum(each.attempt == self.attempt for each in read_metrics(self.run.metrics)) >= count

        wait_for(has_stepped, f"{count} steps of attempt {self.attempt}", self.say)

    def ranks(self) -> dict[int, ProcessId]:
        """The living ranks of this attempt."""
        found = {}
        for process in processes_of_run(self.launch.run_dir):
            environment = read_environment(process.pid)
            if environment.get("FITLAUNCH_ATTEMPT") == str(self.attempt) and "RANK" in environment:
                found[int(environment["RANK"])] = process
        return found

    def processes(self, node: int) -> tuple[ProcessId, ...]:
        """What the agent of a node has started, the program above its ranks first."""
        return processes_of_run(self.launch.run_dir, lambda env: env.get("FITLAUNCH_NODE") == str(node))

    def signal_everything(self, number: signal.Signals) -> None:
        """As Slurm does it: every process of the step, at once."""
        for process in processes_of_run(self.launch.run_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        for agent in self.agents:
            agent.send_signal(number)

    def end(self, node: int) -> NodeEnd:
        ends = {end.node_rank: end for end in read_node_ends(self.run, self.attempt)}
        return ends[node]

    def state(self) -> RunState:
        state = read_record(self.run.state, RunState)
        assert state is not None
        return state


@contextlib.contextmanager
def nodes(
    run: RunFolder,
    launch: LaunchPlan,
    *,
    count: int = 2,
    attempt: int = 1,
    env: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
    stdin: int = subprocess.DEVNULL,
) -> Iterator[Nodes]:
    """Start the agents of an attempt; whatever the test does, no process outlives it."""
    port = choose_port(f"{run.root}-{attempt}")
    agents: list[subprocess.Popen[bytes]] = []
    outputs = [run.root.parent / f"agent-{attempt}-{node}-{time.monotonic_ns()}.txt" for node in range(count)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    try:
        for node, output in enumerate(outputs):
            with output.open("wb") as file:
                agents.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, "-P", "-m", "launcher.node", str(run.root), str(attempt)),
                            *("--node-rank", str(node), "--head", "127.0.0.1", "--port", str(port)),
                            *("--rendezvous", f"{run.root.name}-{attempt}", *options),
                        ],
                        cwd=ROOT,
                        env={**clean, **(env or {})},
                        stdin=stdin,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield Nodes(run=run, launch=launch, attempt=attempt, port=port, agents=agents, outputs=outputs)
    finally:
        for agent in agents:
            with contextlib.suppress(ProcessLookupError):
                agent.kill()
            agent.wait(timeout=10)
            if agent.stdin is not None:
                agent.stdin.close()
        end_processes(lambda: processes_of_run(launch.run_dir, belongs_to_attempt(attempt)), term_grace_s=0.0)


def belongs_to_attempt(attempt: int) -> Callable[[Mapping[str, str]], bool]:
    return lambda environment: environment.get("FITLAUNCH_ATTEMPT") == str(attempt)


def assert_nothing_left(those: Nodes, *, within_s: float = 0.0) -> None:
    """No process, port or half-written file is left of an attempt."""
    end = time.monotonic() + within_s
    while processes_of_run(those.launch.run_dir) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_of_run(those.launch.run_dir) == (), those.say()
    assert all(agent.poll() is not None for agent in those.agents)
    assert port_is_free(those.port)
    assert_no_half_written_file(those.run)
