"""What is put around DeepSpeed's own launcher, without starting it: values, environment, lease."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import InputError
from launcher.runs.layout import RunFolder
from launcher.runs.records import AttemptStart, NodeEnd, RankDeath, read_record
from launcher.spec import Program, ShardKind
from launcher.targets.hosts import passed_on
from launcher.targets.pdsh import Pdsh, is_harmless
from launcher.targets.preflight import Ready
from tests.launching import make_launch
from tests.several_hosts import TWO, hosts_spec, probed

READY = Ready(
    head="node1",
    port=23_456,
    probed=(probed(num_cores=16, interface="eth0"), probed(num_cores=6, interface="eth0")),
    warnings=(),
)


HARMFUL = (
    *("$(reboot)", "`x`", "a b", "a;b", "%n", "~root", "x=~root", "a:~", '"', "'", "a\nb", "é"),
    *("a\\b", "a*", "{a,b}", "!x", "#x"),
)


@pytest.mark.parametrize("value", HARMFUL)
def test_values_that_a_shell_could_read_are_not_harmless(value: str) -> None:
    assert not is_harmless(value)


@given(st.text(max_size=20))
def test_a_shell_gives_back_what_is_harmless(value: str) -> None:
    """As DeepSpeed writes it: export NAME=VALUE; unquoted."""
    if is_harmless(value):
        assert value.isascii()
        done = subprocess.run(
            ("sh", "-c", f'export V={value}; printf %s "$V"'), capture_output=True, text=True, timeout=10, check=True
        )
        assert done.stdout == value


def test_a_variable_that_is_not_set_or_that_a_shell_could_read_is_named() -> None:
    spec = hosts_spec(program=Program.DEEPSPEED, shard=ShardKind.ZERO2, environment=("NCCL_DEBUG", "A", "B"))
    with pytest.raises(InputError) as raised:
        passed_on(spec, {"NCCL_DEBUG": "WARN", "A": "$(reboot)"})
    assert [str(problem) for problem in raised.value.problems] == [
        "cluster.environment=B is not set here: export it, or leave it out",
        "cluster.environment=A has a value that DeepSpeed's launcher would hand to a shell: use launcher=torchrun",
    ]
    assert "reboot" not in str(raised.value)


def test_agents_take_any_value_but_not_any_amount() -> None:
    spec = hosts_spec(environment=("A",))
    assert passed_on(spec, {"A": "$(x) 'y'", "B": "z"}) == {"A": "$(x) 'y'"}
    with pytest.raises(InputError, match="has values of more than 32768 bytes in all"):
        passed_on(spec, {"A": "x" * 40_000})


FAKE = """#!/bin/sh
echo "$@" > argv
env | sort > environment
cat "$DS_ENV_FILE" > env_file
stat -c %a "$DS_ENV_FILE" > mode
echo 'node2: [2026-11-22 10:06:36,995] [ERROR] [launch.py:341:sigkill_handler] [...] exits with return code = -9'
echo 'pdsh@head: node1: ssh exited with exit code 255'
"""


def test_what_deepspeeds_launcher_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's environment but what ssh needs; the ranks' own in a file of this user's alone."""
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    for name, value in {"WANDB_API_KEY": "s3cret", "MLFLOW_TRACKING_TOKEN": "s3cret", "PYTHONPATH": "/mine"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    spec = hosts_spec(program=Program.DEEPSPEED, shard=ShardKind.ZERO2, source="embedded", environment=("NCCL_DEBUG",))
    launch = make_launch(tmp_path, spec=spec, run_id="run", python=str(fake))
    run = RunFolder(Path(launch.run_dir))
    ranks = Pdsh(run, launch, 3, TWO, READY, num_ranks_per_node=2, environment={"NCCL_DEBUG": "WARN"})
    ranks.start()
    assert run.lease(3).exists()
    while not ranks.are_over:
        pass
    ranks.look()
    ranks.end(5.0)
    folder = run.node(3, 0)
    assert "--master_addr=node1 --master_port=23456" in (folder / "argv").read_text()
    assert (folder / "mode").read_text() == "600\n"
    given = dict(line.split("=", 1) for line in (folder / "env_file").read_text().splitlines())
    assert given == launch.env | {
        "FITLAUNCH_ATTEMPT": "3",
        "FITLAUNCH_LEASE": str(run.lease(3)),
        "FITLAUNCH_PLAN_HASH": launch.hash,
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_DEBUG": "WARN",
        "OMP_NUM_THREADS": "3",
    }
    seen = (folder / "environment").read_text()
    assert "s3cret" not in seen
    assert "/mine" not in seen
    assert "PDSH_RCMD_TYPE=ssh\n" in seen
    assert "PDSH_SSH_ARGS_APPEND=-o BatchMode=yes -o ConnectTimeout=5 -o StrictHostKeyChecking=yes" in seen
    # It tells which host ended how, and which one is lost.
    assert [str(lost) for lost in ranks.lost] == ["node1 was lost: its ssh connection broke"]
    assert read_record(run.attempt_start(3), AttemptStart) is not None
    ended = read_record(run.node_end(3, 1), NodeEnd)
    assert ended is not None
    assert (ended.host, ended.exit_code, ended.deaths) == ("node2", -9, ())
    # Nothing of it stays but the records.
    assert sorted(path.name for path in (run.root / "control").iterdir()) == []
    assert stat.S_IMODE(run.root.stat().st_mode) & 0o077 in (0o055, 0)


def test_a_rank_that_is_alone_on_its_host_is_named(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    spec = hosts_spec(program=Program.DEEPSPEED, shard=ShardKind.ZERO2, source="embedded", gpus=1)
    launch = make_launch(tmp_path, spec=spec, run_id="run", python=str(fake))
    run = RunFolder(Path(launch.run_dir))
    ranks = Pdsh(run, launch, 1, TWO, READY, num_ranks_per_node=1, environment={})
    ranks.start()
    while not ranks.are_over:
        pass
    ranks.end(5.0)
    ended = read_record(run.node_end(1, 1), NodeEnd)
    assert ended is not None
    assert [(death.rank, death.exit_code) for death in ended.deaths] == [(1, -9)]
    assert isinstance(ended.deaths[0], RankDeath)
