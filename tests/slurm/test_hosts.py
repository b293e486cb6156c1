"""Several hosts without Slurm, over real ssh: who may take part, how a run ends, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.runs.layout import RunFolder
from launcher.runs.records import NodeEnd, Status, Stopped, read_record
from launcher.spec import HostSlots, Program
from launcher.targets.facts import code_hash
from launcher.targets.hosts import cancel_hosts
from slurm.bed import Bed
from tests.slurm.harness import ROOT
from tests.slurm.several import assert_nothing_left, following, left_on, still_run
from tests.slurm.still_ranks import LONG_STEPS, SECRET

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

THREE = tuple(HostSlots(host=f"node{n}", slots=2) for n in (1, 2, 3))
# ssh takes a host for lost after half a minute, the others have 20 s to write what they know.
LOST_S = 75.0


def ends(run: RunFolder, attempt: int = 1) -> list[NodeEnd]:
    found = [read_record(run.node_end(attempt, node), NodeEnd) for node in (0, 1)]
    return [end for end in found if end is not None]


@pytest.fixture
def other_code(bed: Bed, tmp_path: Path) -> Iterator[None]:
    """node2 has other code than the rest."""
    own = ROOT / "launcher" / "units.py"
    other = tmp_path / "units.py"
    other.write_text(own.read_text() + "# changed\n")
    bed.must("node2", ("mount", "--bind", str(other), str(own)))
    yield
    if bed.is_on("node2"):
        bed.must("node2", ("umount", str(own)))


@pytest.mark.usefixtures("other_code")
def test_everything_wrong_with_any_host_is_one_screen_and_nothing_starts(bed: Bed, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = still_run(runs, hosts=THREE, paths={"path": str(tmp_path / "none")})
    bed.own_disk("node1", runs)
    bed.power_off("node3")
    with following(bed, run) as launcher:
        assert launcher.wait() == 4
        said = launcher.says()
    bed.remove_disk("node1", runs)
    other_hash = re.search(r"than this host \(([0-9a-f]{12}), here", said)
    assert other_hash is not None
    why = re.search(r"node3: cannot be reached by ssh \((.*)\)\n", said)
    assert why is not None
    shared = "use runs_dir=DIR on a file system that every host mounts at the same path"
    assert said == (
        "3 of 3 hosts cannot take part; nothing was started\n"
        f"  node1: does not see the files that this host writes to {run.root}\n"
        f"    {shared}\n"
        f"  node1, node2: has no {tmp_path}/none\n"
        "    put them where every host sees them\n"
        "  node2: runs other code of fitlaunch than this host "
        f"({other_hash[1]}, here {code_hash()[:12]})\n"
        "    install the same commit on every host\n"
        f"  node3: cannot be reached by ssh ({why[1]})\n"
        "    ssh node3 true must work without a question\n"
    )
    assert re.search(r"(timed out|No route to host)$", why[1])
    assert not run.attempt(1).exists()
    assert_nothing_left(bed, run)


def test_a_host_whose_key_is_not_known_is_refused(bed: Bed, tmp_path: Path) -> None:
    run = still_run(tmp_path / "runs", hosts=(THREE[0], HostSlots(host="nobody@node2", slots=2)))
    known = tmp_path / "known_hosts"
    known.write_text("")
    bed.must("head", ("mount", "--bind", str(known), "/etc/ssh/ssh_known_hosts"))
    try:
        with following(bed, run) as launcher:
            assert launcher.wait() == 4
            said = launcher.says()
    finally:
        bed.must("head", ("umount", "/etc/ssh/ssh_known_hosts"))
    assert said == (
        "2 of 2 hosts cannot take part; nothing was started\n"
        "  node1: its host key is not known here\n"
        "    ssh node1 once by hand, or have it in known_hosts\n"
        "  nobody@node2: its host key is not known here\n"
        "    ssh nobody@node2 once by hand, or have it in known_hosts\n"
    )


def test_a_stop_is_heeded_on_all_hosts_and_the_run_goes_on_later_with_its_secret_nowhere(
    bed: Bed, tmp_path: Path
) -> None:
    secret = "wh1sper-" + hashlib.sha256(str(time.time()).encode()).hexdigest()
    run = still_run(tmp_path / "runs", environment=(SECRET,))
    with following(bed, run, env={SECRET: secret}) as launcher:
        launcher.wait_for_steps()
        launcher.wait_for(lambda: len(list(run.root.glob("secret-*"))) == 4, "the secret on every rank")
        seen = seen_in_the_open(bed, secret)
        launcher.send("INT")
        assert launcher.wait() == 130
        assert "INT: the ranks save at the end of this step and stop; once more ends them at once" in launcher.says()
    assert seen == []
    assert_nothing_left(bed, run)
    stopped = read_record(run.stopped(1), Stopped)
    assert stopped is not None
    assert stopped.cause == "SIGINT"
    assert [(end.exit_code, end.ended_by) for end in ends(run)] == [(0, ""), (0, "")]
    assert (launcher.state().status, launcher.state().exit_code) == (Status.STOPPED, 130)
    told = {path.read_text() for path in run.root.glob("secret-*")}
    assert told == {hashlib.sha256(secret.encode()).hexdigest()}

    with following(bed, run) as launcher:  # without the variable: named, and nothing started
        assert launcher.wait() == 2
        assert launcher.says() == f"cluster.environment={SECRET} is not set here: export it, or leave it out\n"
    with following(bed, run, env={SECRET: secret}) as launcher:
        launcher.wait_for_steps(attempt=2)
        left = cancel_from(bed, "node3", run)
        assert launcher.wait() == 130
    assert [line.partition("=")[0] for line in left] == ["node1", "node2"]
    assert_nothing_left(bed, run)
    assert not any(secret.encode() in path.read_bytes() for path in run.root.parent.rglob("*") if path.is_file())


def cancel_from(bed: Bed, host: str, run: RunFolder) -> list[str]:
    """Cancel from another host than the launcher's."""
    code = (
        "import sys; from pathlib import Path; from launcher.runs.layout import RunFolder; "
        f"from {cancel_hosts.__module__} import cancel_hosts; "
        "[print(f'{each.host}={each.num_found}') for each in cancel_hosts(RunFolder(Path(sys.argv[1])))]"
    )
    done = bed.on(host, (sys.executable, "-c", code, str(run.root)), timeout_s=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def seen_in_the_open(bed: Bed, secret: str) -> list[str]:
    """Where a secret is seen: on a command line, or in the environment of others than the ranks and their launcher."""
    found = []
    for host in ("head", "node1", "node2"):
        for pid in bed.processes(host):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                environ = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if secret.encode() in command:
                found.append(f"{host} command {command!r}")
            if secret.encode() in environ and not any(
                word in command for word in (b"tests.slurm.still_ranks", b"tests.faults.drive")
            ):
                found.append(f"{host} environment of {command!r}")
    return found


def test_asked_twice_the_launcher_ends_ranks_that_do_not_heed(bed: Bed, tmp_path: Path) -> None:
    run = still_run(tmp_path / "runs", mode="stubborn")
    with following(bed, run) as launcher:
        launcher.wait_for_steps()
        launcher.send("INT")
        time.sleep(1.0)
        launcher.send("INT")
        assert launcher.wait(60) == 130
        assert "ended by force: the user asked again" in launcher.says()
    assert_nothing_left(bed, run)


@pytest.mark.parametrize("mode", ["", "stubborn"])
def test_a_killed_launcher_leaves_nothing_on_any_host(bed: Bed, tmp_path: Path, mode: str) -> None:
    run = still_run(tmp_path / "runs", mode=mode)
    with following(bed, run) as launcher:
        launcher.wait_for_steps()
        launcher.send("KILL")
        launcher.wait(10)
        assert_nothing_left(bed, run, within_s=30)
    assert [end.ended_by for end in ends(run)] == ["the launcher is gone", "the launcher is gone"]


def test_a_rank_that_is_killed_is_the_first_cause_with_its_host(bed: Bed, tmp_path: Path) -> None:
    run = still_run(tmp_path / "runs", mode="fail")
    with following(bed, run) as launcher:
        assert launcher.wait() == 5
        said = launcher.says()
    assert said.splitlines()[0] == "failed"
    assert "rank 3" in said.splitlines()[1]
    assert "node2" in said.splitlines()[1]
    assert "SIGKILL" in said.splitlines()[1]
    assert_nothing_left(bed, run)


@pytest.mark.parametrize(
    ("fault", "mended", "why"),
    [
        ("power_off", "boot", r"closed by remote host|nothing was heard|No route"),
        ("cut", "mend", "^nothing was heard of it for 30 s$"),
    ],
)
def test_a_host_that_is_lost_ends_the_run_and_is_named(
    bed: Bed, tmp_path: Path, fault: str, mended: str, why: str
) -> None:
    run = still_run(tmp_path / "runs", mode="stuck")
    with following(bed, run) as launcher:
        launcher.wait_for_steps(LONG_STEPS - 1)
        getattr(bed, fault)("node2")
        begun = time.monotonic()
        assert launcher.wait() == 5
        took_s = time.monotonic() - begun
        said = launcher.says()
    assert took_s < LOST_S
    assert "node 1 (node2) was lost" in said
    assert "what is left on node2 is not known" in said
    assert left_on(bed, "node1", run) == []
    assert ends(run)[0].ended_by == "the ranks of node 1 have ended"
    getattr(bed, mended)("node2")
    assert_nothing_left(bed, run, within_s=40)  # cut off, node2 ends its ranks by itself
    assert ends(run)[1].is_lost
    assert re.search(why, ends(run)[1].ended_by)


def test_deepspeed_over_pdsh_stops_in_order_and_outlives_no_killed_launcher(bed: Bed, tmp_path: Path) -> None:
    run = still_run(tmp_path / "runs", Program.DEEPSPEED, environment=("NCCL_DEBUG",))
    env = {"NCCL_DEBUG": "WARN", "MLFLOW_TRACKING_TOKEN": "wh1sper"}
    with following(bed, run, env=env) as launcher:
        launcher.wait_for_steps()
        assert seen_in_the_open(bed, "wh1sper") == []
        assert b"NCCL_DEBUG=WARN" in environment_of_a_rank(bed, "node2", run)
        launcher.send("INT")
        assert launcher.wait() == 130
        assert "stopped after step" in launcher.says()
    assert launcher.state().status is Status.STOPPED
    assert_nothing_left(bed, run)

    with following(bed, run, env=env) as launcher:
        launcher.wait_for_steps(attempt=2)
        launcher.send("KILL")
        launcher.wait(10)
        assert left_on(bed, "node2", run) != []  # nothing tells them at once
        assert_nothing_left(bed, run, within_s=60)


def environment_of_a_rank(bed: Bed, host: str, run: RunFolder) -> list[bytes]:
    """The environment of one rank on a host."""
    for pid in bed.processes(host):
        with contextlib.suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if f"FITLAUNCH_RUN={run.root}".encode() in environ and any(word.startswith(b"RANK=") for word in environ):
                return environ
    return []
