"""What is said of hosts that cannot take part: every one of them, on one screen, each with its way out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from launcher.spec import JobSpec
from launcher.targets.preflight import Here, complaints, words
from launcher.targets.ssh import Answer
from tests.launching import H100
from tests.several_hosts import TWO, hosts_spec, probed

HERE = Here(
    versions={"fitlaunch": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
    code_hash="c0de" * 16,
    nonce="n0nce",
    python="/venv/bin/python",
    run_dir="/data/runs/a",
)


def answer(host: str, exit_code: int | None = 0, err: str = "") -> Answer:
    return Answer(host=host, exit_code=exit_code, out="", err=err)


def said_of_node2(spec: JobSpec | None = None, **changes: Any) -> list[tuple[str, str]]:
    """What is wrong with node2, where node1 is as it should be."""
    spec = spec or hosts_spec()
    head = probed(hostname="node1", num_gpus=8, gpu_bytes=H100.memory_bytes)
    found = {"node1": head, "node2": probed(**changes)}
    answers = [answer("node1"), answer("node2")]
    all_of_them = list(complaints(TWO, spec, answers, found, HERE))
    assert all(each.host == "node2" for each in all_of_them)
    return [(each.rule, each.way_out) for each in all_of_them]


def test_hosts_as_they_should_be() -> None:
    assert said_of_node2() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nonce": None}, "does not see the files that this host writes to /data/runs/a"),
        ({"nonce": "another"}, "does not see the files that this host writes to /data/runs/a"),
        ({"can_write": False}, "cannot write to /data/runs/a, or not so that this host sees it"),
        (
            {"versions": {"fitlaunch": "0.2.0", "python": "3.11.7"}, "code_hash": "0"},
            "has other versions than this host: fitlaunch 0.2.0 (here 0.1.0), torch missing (here 2.13.0)",
        ),
        (
            {"code_hash": "0123456789abcdef"},
            "runs other code of fitlaunch than this host (0123456789ab, here c0dec0dec0de)",
        ),
        ({"missing_paths": ("/models/a", "/b")}, "has no /models/a, /b"),
        ({"heads_address": ""}, "cannot resolve node1, the head of the run"),
        ({"heads_address": "127.0.1.1"}, "takes node1, the head of the run, for itself (127.0.1.1)"),
        ({"num_left": 3}, "still has 3 processes of this run"),
    ],
)
def test_each_thing_that_is_wrong(changes: dict[str, Any], expected: str) -> None:
    assert [rule for rule, _ in said_of_node2(**changes)] == [expected]


def test_the_head_may_take_its_own_name_for_itself() -> None:
    found = {"node1": probed(hostname="node1", heads_address="127.0.1.1"), "node2": probed()}
    assert list(complaints(TWO, hosts_spec(), [answer("node1"), answer("node2")], found, HERE)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"num_gpus": 1, "gpu_bytes": 85_520_809_984, "gpu_names": ("h100-80g",)},
            ["has 1 GPUs, and the job takes 2"],
        ),
        (
            {"num_gpus": 0, "gpu_problem": "Driver Not Loaded"},
            ["has 0 GPUs, and the job takes 2 (Driver Not Loaded)"],
        ),
        (
            {"num_gpus": 2, "gpu_bytes": 42_500_000_000, "gpu_names": ("a100-40g", "a100-40g")},
            ["has GPUs of 39.58 GiB (a100-40g), and the plan is for h100-80g with 79.65 GiB"],
        ),
        ({"num_gpus": 2, "gpu_bytes": 85_000_000_000, "gpu_names": ("h100-80g", "h100-80g")}, []),
    ],
)
def test_gpus_are_those_that_were_planned_for(changes: dict[str, Any], expected: list[str]) -> None:
    assert [rule for rule, _ in said_of_node2(hosts_spec(device=H100), **changes)] == expected


@pytest.mark.parametrize(
    ("exit_code", "err", "rule", "way_out"),
    [
        (
            255,
            "ssh: connect to host node2 port 22: Connection timed out",
            "cannot be reached by ssh (ssh: connect to host node2 port 22: Connection timed out)",
            "ssh node2 true must work without a question",
        ),
        (
            255,
            "No ED25519 host key is known for node2.\nHost key verification failed.",
            "its host key is not known here",
            "ssh node2 once by hand, or have it in known_hosts",
        ),
        (
            255,
            "@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\n@@@\nHost key verification failed.",
            "its host key is another one than before",
            "find out why, then correct known_hosts",
        ),
        (
            255,
            "me@node2: Permission denied (publickey).",
            "it does not let this user in",
            "a key without a passphrase, or an agent, must open it",
        ),
        (
            127,
            "bash: line 1: /venv/bin/python: No such file or directory",
            "there is no /venv/bin/python there",
            "the same environment must be at the same path on every host",
        ),
        (
            1,
            "/venv/bin/python: Error while finding module (ModuleNotFoundError: No module named 'launcher')",
            "fitlaunch is not installed there",
            "the same environment must be at the same path on every host",
        ),
        (
            None,
            "\nno answer in time",
            "cannot be reached by ssh (no answer in time)",
            "ssh node2 true must work without a question",
        ),
        (
            2,
            "launcher.targets.probe: error: unrecognized arguments: --x",
            "cannot tell how it stands (launcher.targets.probe: error: unrecognized arguments: --x)",
            "the same environment must be at the same path on every host",
        ),
    ],
)
def test_hosts_that_do_not_answer(exit_code: int | None, err: str, rule: str, way_out: str) -> None:
    answers = [answer("node1"), answer("node2", exit_code, err)]
    (only,) = complaints(TWO, hosts_spec(), answers, {"node1": probed(hostname="node1")}, HERE)
    assert (only.host, only.rule, only.way_out) == ("node2", rule, way_out)


def test_all_of_it_is_one_screen_and_hosts_with_the_same_trouble_share_a_line() -> None:
    hosts = (*TWO, dataclasses.replace(TWO[0], host="node3"))
    answers = [answer("node1"), answer("node2", 255, "Host key verification failed."), answer("node3")]
    found = {"node1": probed(hostname="node1", nonce=None), "node3": probed(nonce=None, num_left=1)}
    everything = tuple(complaints(hosts, hosts_spec(hosts), answers, found, HERE))
    assert words(everything, len(hosts)) == (
        "3 of 3 hosts cannot take part; nothing was started\n"
        "  node1, node3: does not see the files that this host writes to /data/runs/a\n"
        "    use runs_dir=DIR on a file system that every host mounts at the same path\n"
        "  node2: its host key is not known here\n"
        "    ssh node2 once by hand, or have it in known_hosts\n"
        "  node3: still has 1 processes of this run\n"
        "    wait a moment, or fitlaunch cancel the run"
    )
