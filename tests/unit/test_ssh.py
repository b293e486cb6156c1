"""Commands over ssh: the argv to the word, and what never gets into one."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.targets import ssh
from launcher.targets.ssh import ask_hosts, ssh_argv, ssh_environment


def test_the_command_to_the_word() -> None:
    assert ssh_argv("root@node2", ("/venv/bin/python", "-P", "-m", "launcher.node", "--end", "/data/runs/a=b")) == (
        *("ssh", "-T"),
        *("-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=yes"),
        *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"),
        *("-o", "ClearAllForwardings=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none"),
        *("-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", "LogLevel=ERROR"),
        *("-o", "PermitLocalCommand=no", "-o", "RemoteCommand=none"),
        *("--", "root@node2", "exec /venv/bin/python -P -m launcher.node --end /data/runs/a=b"),
    )


def test_ssh_itself_reads_every_option() -> None:
    """-G prints what ssh makes of its options and connects to nobody."""
    argv = ("ssh", "-G", *ssh_argv("node2", ("true",))[1:])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    assert {"batchmode yes", "stricthostkeychecking true", "serveraliveinterval 10", "host node2"} <= set(
        done.stdout.splitlines()
    )


@pytest.mark.parametrize(
    "word", ["", "a b", "$(reboot)", "`x`", "a;b", "a&b", "a|b", "x>y", "a\nb", "'", '"', "é", "%h"]
)
def test_words_that_a_shell_could_read_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="cannot go over ssh"):
        ssh_argv("node1", ("echo", word))


def test_a_host_that_is_an_option_is_refused() -> None:
    with pytest.raises(ValueError, match="would be an option of ssh"):
        ssh_argv("-oProxyCommand=reboot", ("true",))


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_a_shell_reads_the_words_that_were_meant(words: list[str]) -> None:
    try:
        command = ssh_argv("node1", words)[-1]
    except ValueError:
        return
    assert shlex.split(command) == ["exec", *words]


def test_the_environment_of_ssh_holds_no_secret() -> None:
    environ = {"HOME": "/root", "PATH": "/bin", "SSH_AUTH_SOCK": "/tmp/a", "WANDB_API_KEY": "x", "LD_PRELOAD": "y"}
    assert ssh_environment(environ) == {"HOME": "/root", "PATH": "/bin", "SSH_AUTH_SOCK": "/tmp/a"}


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh that does what the name of the host says."""
    path = tmp_path / "ssh"
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys, time\n"
        "host = sys.argv[-2]\n"
        "if host == 'hangs': time.sleep(60)\n"
        "if host == 'refuses': print('warning', 'Permission denied (publickey).', sep='\\n', file=sys.stderr)\n"
        "if host == 'refuses': sys.exit(255)\n"
        "print(host, sys.argv[-1], sys.stdin.read())\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("fake_ssh")
def test_all_hosts_are_asked_at_the_same_time_and_one_that_hangs_costs_only_the_timeout() -> None:
    begun = time.monotonic()
    commands = {"hangs": ("true",), "refuses": ("true",), "answers": ("echo", "x")}
    hangs, refuses, answers = ask_hosts(commands, timeout_s=2.0, text_in="hello")
    assert time.monotonic() - begun < 8
    assert (hangs.host, hangs.exit_code, hangs.last_words) == ("hangs", None, "no answer in time")
    assert (refuses.exit_code, refuses.last_words) == (255, "Permission denied (publickey).")
    assert (answers.exit_code, answers.out, answers.err) == (0, "answers exec echo x hello\n", "")


@pytest.mark.usefixtures("fake_ssh")
def test_who_asks_to_stop_waits_no_longer() -> None:
    begun = time.monotonic()
    (answer,) = ask_hosts({"hangs": ("true",)}, timeout_s=60.0, is_stopped=lambda: time.monotonic() > begun + 0.5)
    assert time.monotonic() - begun < 8
    assert (answer.exit_code, answer.last_words) == (None, "stopped")


def test_a_host_without_ssh_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (answer,) = ask_hosts({"node1": ("true",)}, timeout_s=2.0)
    assert (answer.exit_code, answer.last_words) == (None, "ssh: No such file or directory")


def test_a_lost_host_is_noticed_within_half_a_minute() -> None:
    assert ssh.ALIVE_PERIOD_S * ssh.ALIVE_MISSED == 30
