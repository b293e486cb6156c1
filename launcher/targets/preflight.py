"""Ask every host of a run before anything is started on it, and say all that is wrong on one screen.

Each host must be reached by ssh with a known key, see the same run folder and be able to write to it, run the same
code with the same packages, know the head by its name, and have the devices that were planned for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher.errors import Interrupted, SubmitError
from launcher.hostfile import host_name
from launcher.node.leftovers import LEFTOVER_WAIT_S
from launcher.node.waiting import wait_until
from launcher.planner.types import MemoryPlan
from launcher.runs.layout import RunFolder
from launcher.runs.records import read_record, write_atomically
from launcher.spec import HostSlots, JobSpec
from launcher.targets.facts import code_hash, differences, unfit_gpus, versions
from launcher.targets.probe import SHARED_WAIT_S, Probed, answer_path
from launcher.targets.ssh import EXIT_SSH, Answer, ask_hosts
from launcher.units import format_bytes

PROBE_TIMEOUT_S = 60.0
SHARED_POLL_S = 0.1

SAME_ENVIRONMENT = "the same environment must be at the same path on every host"
SSH_WAYS_OUT = (
    ("IDENTIFICATION HAS CHANGED", "its host key is another one than before", "find out why, then correct known_hosts"),
    (
        "Host key verification failed",
        "its host key is not known here",
        "ssh {host} once by hand, or have it in known_hosts",
    ),
    ("Permission denied", "it does not let this user in", "a key without a passphrase, or an agent, must open it"),
    ("Could not resolve hostname", "its name is not known here", "use a name or an address that every host resolves"),
    ("No module named", "fitlaunch is not installed there", SAME_ENVIRONMENT),
    ("No such file or directory", "there is no {python} there", SAME_ENVIRONMENT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """What keeps a host from taking part, and the way out."""

    host: str
    rule: str
    way_out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What the hosts' answers are held against: this host's own, and the nonce that was written."""

    versions: Mapping[str, str]
    code_hash: str
    nonce: str
    python: str
    run_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Hosts that may start: where they meet, and what each of them said, in the order of the hosts."""

    head: str
    port: int
    probed: tuple[Probed, ...]
    warnings: tuple[str, ...]


def check_hosts(run: RunFolder, spec: JobSpec, *, python: str, is_stopped: Callable[[], bool]) -> Ready:
    """Ask all hosts at once. Raises SubmitError that names everything wrong with any of them."""
    hosts = _hosts(spec)
    end = time.monotonic() + LEFTOVER_WAIT_S
    while True:
        here, answers, probed = _ask(run, spec, python, is_stopped)
        if is_stopped():
            raise Interrupted("stopped before anything was started")
        if time.monotonic() >= end or not any(each.num_left for each in probed.values()):
            break
        time.sleep(1.0)
    found = tuple(complaints(hosts, spec, answers, probed, here))
    if found:
        raise SubmitError(words(found, len(hosts)))
    first = probed[hosts[0].host]
    assert first.port is not None, "the head was asked for a port"
    ready = tuple(probed[each.host] for each in hosts)
    plan = read_record(run.memory_plan, MemoryPlan)
    needed = 0 if plan is None else plan.host_ram_bytes_per_node
    return Ready(
        head=host_name(hosts[0].host),
        port=first.port,
        probed=ready,
        warnings=tuple(_warnings(hosts, ready, spec, needed)),
    )


def complaints(
    hosts: Sequence[HostSlots],
    spec: JobSpec,
    answers: Sequence[Answer],
    probed: Mapping[str, Probed],
    here: Here,
) -> Iterator[Complaint]:
    """Everything that keeps hosts from taking part, host by host. Pure."""
    head = hosts[0].host
    for answer in answers:
        found = probed.get(answer.host)
        if found is None:
            yield _unreached(answer, here.python)
            continue
        for rule, way_out in _unfit(found, spec, here, head=host_name(head), is_head=answer.host == head):
            yield Complaint(host=answer.host, rule=rule, way_out=way_out)


def _unreached(answer: Answer, python: str) -> Complaint:
    text = answer.err + answer.out
    for words, rule, way_out in SSH_WAYS_OUT:
        if words in text:
            place = {"host": answer.host, "python": python}
            return Complaint(host=answer.host, rule=rule.format(**place), way_out=way_out.format(**place))
    why = answer.last_words or f"exit code {answer.exit_code}"
    if answer.exit_code in (EXIT_SSH, None):
        rule, way_out = f"cannot be reached by ssh ({why})", f"ssh {answer.host} true must work without a question"
    else:
        rule, way_out = f"cannot tell how it stands ({why})", SAME_ENVIRONMENT
    return Complaint(host=answer.host, rule=rule, way_out=way_out)


def _unfit(found: Probed, spec: JobSpec, here: Here, *, head: str, is_head: bool) -> Iterator[tuple[str, str]]:
    shared = "use runs_dir=DIR on a file system that every host mounts at the same path"
    if found.nonce != here.nonce:
        yield f"does not see the files that this host writes to {here.run_dir}", shared
    elif not found.can_write:
        yield f"cannot write to {here.run_dir}, or not so that this host sees it", shared
    if others := differences(found.versions, here.versions):
        yield f"has other versions than this host: {others}", "install the same ones on every host"
    elif found.code_hash != here.code_hash:
        yield (
            f"runs other code of fitlaunch than this host ({found.code_hash[:12]}, here {here.code_hash[:12]})",
            "install the same commit on every host",
        )
    if found.missing_paths:
        yield f"has no {', '.join(found.missing_paths)}", "put them where every host sees them"
    if not found.heads_address and not is_head:
        yield f"cannot resolve {head}, the head of the run", "use names or addresses that every host resolves"
    elif found.heads_address.startswith("127.") and not is_head:
        yield f"takes {head}, the head of the run, for itself ({found.heads_address})", "use its name on the network"
    if spec.device.kind == "cuda":
        yield from unfit_gpus(found, spec.device, spec.gpus_per_node)
    if found.num_left:
        yield f"still has {found.num_left} processes of this run", "wait a moment, or fitlaunch cancel the run"


def _warnings(hosts: Sequence[HostSlots], probed: Sequence[Probed], spec: JobSpec, needed_bytes: int) -> Iterator[str]:
    for host, found in zip(hosts, probed, strict=True):
        if spec.device.kind == "cpu" and found.num_gpus:
            yield f"{host.host}: its {found.num_gpus} GPUs are not used, for the job is for CPU ranks: device=NAME"
        if found.num_gpus_in_use:
            yield f"{host.host}: somebody holds memory on {found.num_gpus_in_use} of its {found.num_gpus} GPUs"
        if found.ram_available_bytes < needed_bytes:
            yield (
                f"{host.host} may run out of RAM: {format_bytes(found.ram_available_bytes)} are available and up to "
                f"{format_bytes(needed_bytes)} are needed"
            )


def words(found: Sequence[Complaint], num_hosts: int) -> str:
    """All of it for one screen; hosts with the same trouble share a line."""
    together: dict[tuple[str, str], list[str]] = {}
    for each in found:
        together.setdefault((each.rule, each.way_out), []).append(each.host)
    num_bad = len({each.host for each in found})
    lines = [f"{num_bad} of {num_hosts} hosts cannot take part; nothing was started"]
    for (rule, way_out), hosts in together.items():
        lines += [f"  {', '.join(hosts)}: {rule}", f"    {way_out}"]
    return "\n".join(lines)


# asking


def _hosts(spec: JobSpec) -> tuple[HostSlots, ...]:
    assert spec.cluster.hosts is not None
    return spec.cluster.hosts.hosts


def _ask(
    run: RunFolder, spec: JobSpec, python: str, is_stopped: Callable[[], bool]
) -> tuple[Here, tuple[Answer, ...], dict[str, Probed]]:
    hosts = _hosts(spec)
    nonce = run.root / "control" / f"nonce-{secrets.token_hex(8)}"
    text = secrets.token_hex(16)
    beside = tuple(answer_path(nonce, rank) for rank in range(len(hosts)))
    try:
        write_atomically(nonce, text)
        nonce.chmod(0o644)
        commands = {each.host: _probe_words(run, spec, python, nonce, rank) for rank, each in enumerate(hosts)}
        answers = ask_hosts(commands, timeout_s=PROBE_TIMEOUT_S, is_stopped=is_stopped)
        probed = {}
        for answer, path in zip(answers, beside, strict=True):
            found = _read(answer)
            if found is not None:
                # What a host says that it wrote counts once it is seen here.
                comes = found.can_write and wait_until(path.exists, timeout_s=SHARED_WAIT_S, poll_s=SHARED_POLL_S)
                probed[answer.host] = dataclasses.replace(found, can_write=comes)
    except OSError as error:
        raise SubmitError(f"the run folder {run.root} cannot be written: {error.strerror or error}") from error
    finally:
        for path in (nonce, *beside):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    here = Here(versions=versions(), code_hash=code_hash(), nonce=text, python=python, run_dir=str(run.root))
    return here, answers, probed


def _probe_words(run: RunFolder, spec: JobSpec, python: str, nonce: Path, rank: int) -> tuple[str, ...]:
    hosts = _hosts(spec)
    head, toward = host_name(hosts[0].host), host_name(hosts[1 if rank == 0 and len(hosts) > 1 else 0].host)
    paths = (path for path in (spec.model.path, spec.data.path, spec.data.eval_path) if path is not None)
    return (
        *(python, "-P", "-m", "launcher.targets.probe", str(run.root)),
        *("--node-rank", str(rank), "--nonce", str(nonce), "--head", head, "--toward", toward),
        *(word for path in paths for word in ("--path", path)),
        *(("--port-seed", f"{run.root.name}-{time.time_ns()}") if rank == 0 else ()),
    )


def _read(answer: Answer) -> Probed | None:
    """What a host said of itself; None where it said nothing, or something else."""
    if answer.exit_code != 0:
        return None
    try:
        # A shell's start-up files may have said something before.
        return msgspec.json.decode(answer.out[answer.out.index("{") :], type=Probed)
    except (ValueError, msgspec.DecodeError):
        return None
