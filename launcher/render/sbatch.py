"""The script that queues a job with Slurm: one readable bash file from slurm/job.sh.j2, for a run or for a sweep."""

from __future__ import annotations

from dataclasses import dataclass

from launcher import allowed
from launcher.allowed import Form
from launcher.errors import InputError, Problem
from launcher.paths import job_template
from launcher.render.asked import Asked
from launcher.spec import GpuRequest, JobSpec, SlurmSpec
from launcher.units import KIB, MIB, ceil_div

JOB_PREFIX = "fitlaunch-"
"""Begins the name of every job of ours: the scheduler is asked for a run by that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Array:
    """A sweep's array. cells_file: one absolute run folder a line, task 0 the first. max_parallel: at a time."""

    cells_file: str
    num_cells: int
    max_parallel: int | None = None

    @property
    def range(self) -> str:
        """As --array wants it: 0-63%8."""
        limit = "" if self.max_parallel is None else f"%{self.max_parallel}"
        return f"0-{self.num_cells - 1}{limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a job script is about. folder: where script and output lie, a run's or a sweep's. name: without prefix."""

    spec: JobSpec
    asked: Asked
    name: str
    folder: str
    python: str
    script_name: str = "job.sh"
    array: Array | None = None


def job_name(name: str) -> str:
    """The scheduler's name for a run or a sweep."""
    return JOB_PREFIX + name


def submit_argv(script_path: str) -> tuple[str, ...]:
    """The command that queues a script; the number of the submission is its last word, added when it is run."""
    return ("sbatch", "--parsable", script_path)


def job_script(script: Script) -> str:
    """The whole text. Raises InputError for a path that sbatch or the shell could misread."""
    import jinja2  # only what is queued needs it

    refuse_odd_paths(script)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  a shell script: every value has a form of launcher.allowed
    )  # fmt: skip
    slurm = _slurm(script.spec)
    return environment.from_string(job_template().read_text()).render(
        summary=_summary(script.spec),
        asked=script.asked,
        options=sbatch_options(script),
        setup=slurm.setup,
        script_name=script.script_name,
        python=script.python,
        folder=script.folder,
        array=script.array,
        container=slurm.container,
        mounts=slurm.container_mounts,
    )


def sbatch_options(script: Script) -> tuple[str, ...]:
    """What stands in the script's #SBATCH lines, in their order."""
    spec, slurm = script.spec, _slurm(script.spec)
    output = "slurm-%A_%a.out" if script.array else "slurm-%j.out"
    chosen = {
        "job-name": job_name(script.name),
        "array": script.array.range if script.array else None,
        "chdir": script.folder,
        "output": f"{script.folder}/{output}",
        "open-mode": "append",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
        "constraint": slurm.constraint,
        "nodelist": ",".join(slurm.nodelist),
        "exclude": ",".join(slurm.exclude),
        "nodes": str(spec.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": slurm.cpus_per_node,
        **_gpus(spec, slurm),
        "mem": memory_option(script.asked.memory_bytes_per_node),
        "time": str(slurm.time_min),
        "signal": f"B:USR1@{script.asked.lead_s}",
    }
    restart = "--requeue" if slurm.requeue else "--no-requeue"
    return (*(f"--{name}={value}" for name, value in chosen.items() if value), restart)


def _gpus(spec: JobSpec, slurm: SlurmSpec) -> dict[str, str]:
    """The site's way of asking for a node's GPUs; never by task, for then each rank would see one."""
    if spec.device.kind == "cpu" or slurm.gpu_request is GpuRequest.NONE:
        return {}
    kind = "" if slurm.gpu_type is None else f"{slurm.gpu_type}:"
    if slurm.gpu_request is GpuRequest.GRES:
        return {"gres": f"gpu:{kind}{spec.gpus_per_node}"}
    return {"gpus-per-node": f"{kind}{spec.gpus_per_node}"}


def memory_option(num_bytes: int) -> str:
    """As --mem wants it: 0 is all of a node, otherwise whole GiB or MiB."""
    mebibytes = ceil_div(num_bytes, MIB)
    if mebibytes % KIB:
        return f"{mebibytes}M"
    return f"{mebibytes // KIB}G" if mebibytes else "0"


def refuse_odd_paths(script: Script) -> None:
    """Paths are the user's own, and stand in #SBATCH lines as well as in shell."""
    checked: list[tuple[str, str, Form, str]] = [
        ("runs_dir", script.folder, allowed.PATH, "use runs_dir=DIR with"),
        ("python", script.python, allowed.PATH, "install in a folder with"),
        ("run", script.name, allowed.JOB_NAME, "use"),
    ]
    if script.array is not None:
        checked.append(("cells", script.array.cells_file, allowed.PATH, "use"))
    problems = [
        Problem(field=field, value=repr(value), rule="cannot stand in a job script", way_out=f"{way_out} {form.words}")
        for field, value, form, way_out in checked
        if not form.matches(value)
    ]
    if problems:
        raise InputError(problems)


def _summary(spec: JobSpec) -> str:
    each = f"{spec.gpus_per_node} x {spec.device.name}"
    nodes = f"{spec.nodes} node{'s' if spec.nodes > 1 else ''}"
    return f"{spec.method.kind} of {spec.model.name} under {spec.shard.kind} on {nodes} of {each}"


def _slurm(spec: JobSpec) -> SlurmSpec:
    assert spec.cluster.slurm is not None, "only a job for Slurm has a script"
    return spec.cluster.slurm
