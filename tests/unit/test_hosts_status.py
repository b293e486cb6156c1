"""How a run on several hosts stands once its launcher is gone: unknown until every host has said how it ended."""

from __future__ import annotations

import socket
from pathlib import Path

from launcher.runs.records import RunState, Status, write_record
from launcher.runs.registry import summarise
from launcher.targets.folder import write_run_folder
from launcher.targets.left import Left, unproven, write_ended
from tests.launching import make_launch
from tests.several_hosts import hosts_spec


def test_it_is_failed_only_when_every_host_has_ended(tmp_path: Path) -> None:
    run = write_run_folder(make_launch(tmp_path, spec=hosts_spec()), now_s=1.0)
    run.attempt(1).mkdir(parents=True)
    state = RunState(
        run_id=run.root.name,
        status=Status.RUNNING,
        attempt=1,
        created_at_s=1.0,
        updated_at_s=2.0,
        launcher_pid=1,
        launcher_start=0,  # process 1 was not started then: this launcher is gone
        host=socket.gethostname(),
    )
    write_record(run.state, state)
    seen = []
    for node, host in enumerate(("node1", "node2", None)):
        seen.append((summarise(run).status, summarise(run).reason))
        if host is not None:
            write_ended(run, 1, node, host)
    assert seen == [
        (Status.UNKNOWN, "its launcher is gone; fitlaunch cancel asks what is left on node1, node2"),
        (Status.UNKNOWN, "its launcher is gone; fitlaunch cancel asks what is left on node2"),
        (Status.FAILED, "its launcher was killed, and left no result"),
    ]


def test_what_could_not_be_asked_is_said() -> None:
    left = (
        Left(host="node1", num_found=0),
        Left(host="node2", num_found=None, why="No route to host"),
        Left(host="node3", num_found=None, why="no answer in time"),
    )
    assert unproven(left[:1]) == ""
    assert unproven(left) == (
        "what is left on node2 is not known (No route to host); what is left on node3 is not known (no answer in time)"
    )
