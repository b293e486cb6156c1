"""What is wrong with the nodes, from what they said. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.operate.doctor.types import Answers, Finding, NodeReport, RanksEnd, Reached
from launcher.runs.diagnosis.signs import recognise_log
from launcher.runs.diagnosis.types import VICTIMS, Kind
from launcher.spec import DeviceSpec
from launcher.targets.facts import differences, unfit_gpus
from launcher.units import MIB, format_bytes

# NCCL makes a segment of 9.6 MB for each neighbour of a rank (NCCL 2.21: 'segment /dev/shm/nccl-... (size 9637888)'),
# and a rank has two of them on its node.
NCCL_SEGMENT_BYTES = 9_637_888
NUM_NEIGHBOURS = 2
# What a data loader or gloo may put there; a node with less has a full /dev/shm.
LEAST_SHM_BYTES = 16 * MIB
VICTIMS_HERE = VICTIMS | {Kind.RENDEZVOUS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the nodes are to be. ram_bytes, disk_bytes: what the plan needs of each node, and in the run folder.

    code_hashes: of this host's code, before the nodes were asked and after, for it may be worked on meanwhile.
    """

    num_nodes: int
    ranks_per_node: int
    device: DeviceSpec
    versions: Mapping[str, str]
    code_hashes: frozenset[str]
    ram_bytes: int
    disk_bytes: int
    with_all_reduce: bool = True

    @property
    def shm_bytes(self) -> int:
        """The least that /dev/shm must have free."""
        if self.device.kind == "cpu":
            return LEAST_SHM_BYTES
        return max(LEAST_SHM_BYTES, NUM_NEIGHBOURS * NCCL_SEGMENT_BYTES * self.ranks_per_node)


def findings(answers: Answers, wanted: Wanted) -> tuple[Finding, ...]:
    """Everything that is wrong, node by node, then what concerns all of them."""
    found = [finding for node in range(wanted.num_nodes) for finding in _of_node(node, answers, wanted)]
    if not found and wanted.with_all_reduce:
        found += _of_all_reduce(answers, wanted)
    return tuple(found)


def unfit_nodes(reports: Mapping[int, NodeReport], reached: Mapping[int, Reached]) -> frozenset[int]:
    """Nodes that must not take part in a collective: without an address, or cut off from most of the others."""
    without = {node for node, report in reports.items() if not report.address or not report.can_write}
    return frozenset(without | cut_off(reports, reached))


def cut_off(reports: Mapping[int, NodeReport], reached: Mapping[int, Reached]) -> frozenset[int]:
    """Nodes without a way to at least half of the others, or back; the worst of them alone, for the rest follow.

    Of two nodes that do not reach each other nobody can tell which is at fault: both are named.
    """
    broken = {frozenset((node, missed)) for node, seen in reached.items() for missed in seen.unreachable}
    counts = {node: sum(node in link for link in broken) for node in reports}
    worst, others = max(counts.values(), default=0), len(reports) - 1
    return frozenset(node for node, count in counts.items() if count == worst > 0 and 2 * count >= others)


def _of_node(node: int, answers: Answers, wanted: Wanted) -> Iterator[Finding]:
    report = answers.reports.get(node)
    if report is None:
        said = answers.said.get(node, ())
        yield Finding(node=node, rule=f"said nothing of itself{_last_words(said)}", way_out=_silent_way_out(said))
        return
    yield from (Finding(node=node, rule=rule, way_out=way_out) for rule, way_out in _wrong(report, wanted))
    if node in cut_off(answers.reports, answers.reached):
        unreachable = ", ".join(_name(answers, other) for other in _not_reached(node, answers))
        yield Finding(
            node=node,
            rule=f"and {unreachable} do not reach each other at {report.address} ({report.interface})",
            way_out="a firewall, or the wrong network: cluster.network_interface=NAME names the one to use",
        )


def _not_reached(node: int, answers: Answers) -> tuple[int, ...]:
    own = answers.reached.get(node)
    of_others = {other for other, seen in answers.reached.items() if node in seen.unreachable}
    return tuple(sorted(of_others | set(own.unreachable if own else ())))


def _wrong(report: NodeReport, wanted: Wanted) -> Iterator[tuple[str, str]]:
    shared = "use runs_dir=DIR on a file system that every node mounts at the same path"
    if not report.sees_folder:
        yield "does not see the folder of the runs", shared
    elif not report.can_write:
        yield "cannot write into the folder of the runs", shared
    if others := differences(report.versions, wanted.versions):
        yield f"has other versions than this host: {others}", "use one environment for all, or cluster.setup=[...]"
    elif report.code_hash not in wanted.code_hashes:
        yield "runs other code of fitlaunch than this host", "install the same commit everywhere"
    if report.missing_paths:
        yield f"has no {', '.join(report.missing_paths)}", "keep models and data where every node sees them"
    if report.network_problem:
        yield report.network_problem, "mend its network, or name another: cluster.network_interface=NAME"
    elif report.address.startswith("127.") and wanted.num_nodes > 1:
        yield f"has no address but {report.address}", "name its network: cluster.network_interface=NAME"
    yield from _too_small(report, wanted)
    if wanted.device.kind == "cuda":
        yield from unfit_gpus(report, wanted.device, wanted.ranks_per_node)


def _too_small(report: NodeReport, wanted: Wanted) -> Iterator[tuple[str, str]]:
    if report.ram_available_bytes < wanted.ram_bytes:
        there, needed = format_bytes(report.ram_available_bytes), format_bytes(wanted.ram_bytes)
        yield f"has {there} of RAM free, and the ranks need {needed}", "see who takes it; less: shard.offload=none"
    if report.disk_free_bytes is not None and report.disk_free_bytes < wanted.disk_bytes:
        there, needed = format_bytes(report.disk_free_bytes), format_bytes(wanted.disk_bytes)
        yield f"sees {there} free in the folder of the runs, and the run may write {needed}", "make room"
    if report.shm_free_bytes < wanted.shm_bytes:
        there, total = format_bytes(report.shm_free_bytes), format_bytes(report.shm_total_bytes)
        yield (
            f"has {there} of {total} free in /dev/shm, and the ranks need {format_bytes(wanted.shm_bytes)}",
            "remove what others left there, or make it larger (container: --shm-size)",
        )


def _of_all_reduce(answers: Answers, wanted: Wanted) -> Iterator[Finding]:
    """Every node alone is as it should be; whether they can work together is another matter."""
    expected = wanted.num_nodes * wanted.ranks_per_node
    if len(answers.reduced) == expected and all(end.exit_code == 0 for end in answers.ends.values()):
        return
    for node in (node for node in range(wanted.num_nodes) if node not in answers.ends):
        yield Finding(node=node, rule="did not come to the all-reduce", way_out="its log is in the folder below")
    failed = {node: end for node, end in sorted(answers.ends.items()) if end.exit_code != 0}
    causes = [node for node, end in failed.items() if recognise_log(end.tail) not in VICTIMS_HERE]
    for node in causes if len(causes) < wanted.num_nodes else ():
        yield Finding(node=node, rule=_how(failed[node]), way_out="its log is in the folder below")
    if failed and len(causes) in (0, wanted.num_nodes):
        first = next(iter(failed.values()))
        rule = f"every node reaches every other, and still: {_how(first)}"
        yield Finding(node=None, rule=rule, way_out="the logs of the all-reduce are in the folder below")


def _how(end: RanksEnd) -> str:
    how = "did not end the all-reduce in time" if end.exit_code is None else "failed in the all-reduce"
    return f"{how}{_last_words(end.tail)}"


def _last_words(lines: tuple[str, ...]) -> str:
    """The last line that says something."""
    told = [line.strip() for line in lines if line.strip() and not set(line.strip()) <= set("=-^~ ")]
    return f": {told[-1]}" if told else ""


def _silent_way_out(said: tuple[str, ...]) -> str:
    text = "\n".join(said)
    if "No such file or directory" in text or "execve" in text:
        return "Python is not there on that node: use an environment on a shared folder, or cluster.setup=[...]"
    if "No module named" in text:
        return "the node has other packages than this host: use one environment on a shared folder"
    return "log in to it, and see whether it is up"


def _name(answers: Answers, node: int) -> str:
    return answers.hosts[node] if node < len(answers.hosts) else f"node {node}"
