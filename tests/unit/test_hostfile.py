"""Hostfiles: what is taken, and what is refused with its line before ssh or DeepSpeed sees it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.hostfile import hostfile_text, parse_hostfile, read_hostfile
from launcher.spec import HostSlots
from launcher.targets.ssh import ssh_argv

ROOT = Path(__file__).parents[2]


def host(name: str, slots: int) -> HostSlots:
    return HostSlots(host=name, slots=slots)


def wrong(text: str) -> list[str]:
    return [f"{each.line}: {each.text} {each.rule}" for each in parse_hostfile(text)[1]]


def test_the_example_is_right() -> None:
    assert read_hostfile(ROOT / "hostfile.example") == ((host("node1", 8), host("node2", 8)), ())


def test_what_is_taken() -> None:
    text = "# two racks\n\nnode1 slots=8\n  alice@gpu-2.rack1.example.org\tslots=4  # half of it\r\n10.0.0.7 slots=1\n"
    hosts = (host("node1", 8), host("alice@gpu-2.rack1.example.org", 4), host("10.0.0.7", 1))
    assert parse_hostfile(text) == (hosts, ())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-oProxyCommand=reboot slots=1", ["1: -oProxyCommand=reboot would be an option of ssh"]),
        ("x@-oProxyCommand=reboot slots=1", ["1: x@-oProxyCommand=reboot is no host name"]),
        ("-l@node1 slots=1", ["1: -l@node1 would be an option of ssh"]),
        ("a@-b@node1 slots=1", ["1: a@-b@node1 names no user that can be"]),
        ("@node1 slots=1", ["1: @node1 names no user that can be"]),
        ("node1:22 slots=1", ["1: node1:22 has a port"]),
        ("fe80::1 slots=1", ["1: fe80::1 is an IPv6 address"]),
        ("[fe80::1] slots=1", ["1: [fe80::1] is an IPv6 address"]),
        ("node[1-3] slots=1", ["1: node[1-3] is no host name"]),
        ("node1,node2 slots=1", ["1: node1,node2 is no host name"]),
        ("$(reboot) slots=1", ["1: $(reboot) is no host name"]),
        ("node1;reboot slots=1", ["1: node1;reboot is no host name"]),
        ("node%n slots=1", ["1: node%n is no host name"]),
        ("^/etc/passwd slots=1", ["1: ^/etc/passwd is no host name"]),
        ("node1- slots=1", ["1: node1- is no host name"]),
        ("node..1 slots=1", ["1: node..1 is no host name"]),
        ("node1", ["1: node1 says no slots"]),
        ("node1 slots=0", ["1: slots=0 is not in 1..1024"]),
        ("node1 slots=1025", ["1: slots=1025 is not in 1..1024"]),
        ("node1 slots=-1", ["1: slots=-1 is not slots=N"]),
        ("node1 slots=2junk", ["1: slots=2junk is not slots=N"]),
        ("node1 slots=²", ["1: slots=² is not slots=N"]),
        ("node1 slots= 2", ["1: slots= is not slots=N", "1: 2 is more than a host and its slots"]),
        ("node1 max_slots=2", ["1: max_slots=2 is not slots=N"]),
        ("node1 8", ["1: 8 is not slots=N"]),
        ("node1 slots=2 -o x=y", ["1: -o x=y is more than a host and its slots"]),
        ("", ["0:  names no host"]),
        ("# nothing", ["0:  names no host"]),
    ],
)
def test_what_is_refused(line: str, expected: list[str]) -> None:
    assert wrong(line) == expected


def test_everything_wrong_comes_at_once_with_its_line() -> None:
    text = "node1 slots=2\n-F slots=0\nNODE1 slots=2\nroot@node1 slots=1\nnode2\n"
    assert wrong(text) == [
        "2: -F would be an option of ssh",
        "2: slots=0 is not in 1..1024",
        "3: NODE1 names node1 again, after line 1",
        "4: root@node1 names node1 again, after line 1",
        "5: node2 says no slots",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary, large = tmp_path / "binary", tmp_path / "large"
    binary.write_bytes(b"node1 slots=2\nn\xf6de2 slots=2\n")
    large.write_bytes(b"#" * ((1 << 20) + 1))
    problems = [str(read_hostfile(path)[1][0]) for path in (tmp_path / "none", tmp_path, binary, large)]
    assert problems == [
        f"cluster.hostfile={tmp_path}/none does not exist: see hostfile.example",
        f"cluster.hostfile={tmp_path} cannot be read (is a directory): give a file that can",
        f"cluster.hostfile={binary} line 2: has characters that are not ASCII: write HOST slots=N or USER@HOST slots=N",
        f"cluster.hostfile={large} is larger than 1048576 bytes: one line a host",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.touch(mode=0)
    assert "permission denied" in str(read_hostfile(path)[1][0])


@given(st.text(max_size=60))
def test_whatever_is_taken_can_be_said_to_ssh_and_read_again(text: str) -> None:
    """No text whatever gives a host that is more than one harmless word."""
    hosts, problems = parse_hostfile(text)
    if problems:
        return
    for each in hosts:
        assert ssh_argv(each.host, ("true",))[-3:] == ("--", each.host, "exec true")
        assert each.host.isascii()
        assert set(each.host) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@")
    again, _ = parse_hostfile(hostfile_text(hosts, slots=2))
    assert [each.host for each in again] == [each.host for each in hosts]
