"""What nodes say, as lines of output, and read back from it.

A node that does not see the shared folder could leave nothing there, so everything is said on stdout: Slurm brings it
together (srun --label puts the number of the task before each line), and so does ssh. What else a node prints, as that
it has no Python, is kept as its words.
"""

from __future__ import annotations

import re
import sys

import msgspec

from launcher.operate.doctor.types import AllReduced, Answers, NodeReport, RanksEnd, Reached

TAG = "fitlaunch-doctor"
NODES = f"{TAG} nodes"
Record = NodeReport | Reached | RanksEnd | AllReduced
KINDS: dict[str, type[Record]] = {
    "report": NodeReport,
    "reached": Reached,
    "end": RanksEnd,
    "reduced": AllReduced,
}
LABEL = re.compile(r"^ *(\d+): ?(.*)$")
# 'srun: error: node2: task 1: Exited with exit code 2'
OF_TASK = re.compile(r"^srun: error: (?P<host>\S+): tasks? (?P<tasks>[\d,\-]+): (?P<words>.*)$")
# 'srun: error: Task launch for StepId=9.0 failed on node node2: Job credential expired'
OF_NODE = re.compile(r"^srun: error: Task launch for \S+ failed on node (?P<host>\S+): (?P<words>.*)$")


def say(record: Record) -> None:
    """Print a record as one line, in one write: lines of several ranks must not mix."""
    kind = next(name for name, known in KINDS.items() if isinstance(record, known))
    sys.stdout.write(f"{TAG} {kind} {msgspec.json.encode(record).decode()}\n")
    sys.stdout.flush()


def read_output(text: str) -> Answers:
    """Everything that the nodes said, from their output put together."""
    records: list[Record] = []
    hosts: tuple[str, ...] = ()
    said: dict[int, list[str]] = {}
    rest: list[str] = []
    for line in text.splitlines():
        label = LABEL.match(line)
        words = label[2] if label else line
        if words.startswith(NODES):
            hosts = tuple(words.removeprefix(NODES).split())
        elif words.startswith(TAG):
            records += _records(words)
        elif of_task := OF_TASK.match(line):
            for task in _tasks(of_task["tasks"]):
                said.setdefault(task, []).append(of_task["words"])
        elif (of_node := OF_NODE.match(line)) and of_node["host"] in hosts:
            said.setdefault(hosts.index(of_node["host"]), []).append(of_node["words"])
        elif label:
            said.setdefault(int(label[1]), []).append(label[2])
        elif line.strip():
            rest.append(line)
    return Answers(
        hosts=hosts,
        reports={each.node_rank: each for each in records if isinstance(each, NodeReport)},
        reached={each.node_rank: each for each in records if isinstance(each, Reached)},
        ends={each.node_rank: each for each in records if isinstance(each, RanksEnd)},
        reduced={each.rank: each for each in records if isinstance(each, AllReduced)},
        said={node: tuple(lines) for node, lines in said.items()},
        rest=tuple(rest),
    )


def _records(words: str) -> list[Record]:
    """The record in a line; none where it is cut off."""
    _, _, tagged = words.partition(" ")
    kind, _, text = tagged.partition(" ")
    try:
        return [msgspec.json.decode(text, type=KINDS[kind])] if kind in KINDS else []
    except msgspec.DecodeError:
        return []


def _tasks(text: str) -> list[int]:
    """1,3-4 as Slurm lists tasks."""
    tasks: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        tasks += range(int(first), int(last or first) + 1)
    return tasks
