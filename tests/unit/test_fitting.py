"""What fits a card: the same plans as launch.py's, the largest that fit and no larger, and no Hydra on the way."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.assemble import assemble
from launcher.cli import run_cli
from launcher.compose import make_spec
from launcher.devices import listed_devices
from launcher.errors import InputError
from launcher.fitting import Answer, answer
from launcher.fitting.largest import SEQUENCE_STEP, largest_within
from launcher.fitting.types import Row
from launcher.models import model_shape
from launcher.paths import conf_dir
from launcher.planner.cards import can_compute, smallest_card_of
from launcher.planner.estimate import Estimate, Estimator
from launcher.planner.plan import make_plan
from launcher.planner.types import MemoryPlan, Verdict
from launcher.spec import MethodKind, Offload, ShardKind
from launcher.units import ceil_div
from tests.composed import host, spec_of

ROOT = Path(__file__).parents[2]
CARDS = listed_devices()


def asked(*words: str, gpu: str | None = None) -> Answer:
    """The answer on a host without GPUs, unless one is named."""
    return answer(words, conf_dir(), host(gpu), CARDS)


def plan(*words: str) -> MemoryPlan:
    """As launch.py makes it, through Hydra."""
    return make_plan(spec_of("mode=plan", *words), CARDS)


ONE_JOB = (
    ("model=llama3-8b", "method=lora", "shard=ddp", "device=rtx4090", "gpus=1"),
    ("model=llama3-8b", "method=full", "shard=zero3", "device=a100-80g", "gpus=4", "train.micro_batch=2"),
    ("model=qwen2.5-7b", "method=qlora", "shard=fsdp", "gpus=2", "train.sequence_length=4096"),
    ("method=lora", "shard=fsdp", "device=cpu", "experiment=demo"),
    ("model=llama3.1-70b", "method=full", "shard=fsdp", "device=h100-80g", "gpus=8", "nodes=2", "cluster=slurm"),
)


@pytest.mark.parametrize("words", ONE_JOB, ids=" ".join)
def test_one_job_is_planned_as_launch_py_plans_it(words: tuple[str, ...]) -> None:
    found = asked(*words)
    assert found.job is not None
    assert found.job.plan == plan(*words)


def test_both_commands_say_the_same() -> None:
    """As whole processes on this host, whatever it is."""
    words = ONE_JOB[1]
    fit = printed(sys.executable, "-c", "from launcher.cli import main; main()", "fit", "--json", *words)
    launch = printed(sys.executable, "launch.py", "mode=plan", "plan.format=json", *words)
    launch.pop("derived")
    assert fit["job"]["plan"] == launch


def printed(*command: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode in (0, 3), done.stderr
    return json.loads(done.stdout)


def test_neither_hydra_nor_torch_is_imported() -> None:
    code = (
        "import sys; from launcher.cli import run_cli; run_cli(['fit', 'model=llama3-8b', 'device=rtx4090']); "
        "print([n for n in ('hydra', 'omegaconf', 'antlr4', 'torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
    assert "What fits" in done.stderr


WORDS = ("model=llama3-8b", "device=rtx4090")


@pytest.fixture(scope="module")
def table() -> Answer:
    return asked(*WORDS)


def test_the_table_has_every_method_and_sharding(table: Answer) -> None:
    plain = [(row.method, row.shard) for row in table.rows if row.offload is Offload.NONE]
    assert sorted(plain) == sorted((method, shard) for method in MethodKind for shard in ShardKind)
    assert table.job is None
    assert table.refused == ()


def estimated(*words: str) -> Estimate:
    """The job's estimate; composed without Hydra, which another test holds to be the same."""
    spec = make_spec(assemble(("mode=plan", *words), conf_dir()), host())
    return Estimator(model_shape(spec.model.config)).best(spec)


def fits(*words: str) -> bool:
    return estimated(*words).fits


def test_each_row_is_a_plan_on_the_fewest_gpus_that_hold_it(table: Answer) -> None:
    for row in table.rows:
        found = plan(*WORDS, *row.overrides)
        assert found.spec.micro_batch == row.micro_batch
        assert (found.verdict is Verdict.FITS) == ok(row)
        assert found.host_ram_bytes_per_node == row.host_ram_bytes_per_node
        least = estimated(*WORDS, *row.overrides, "train.micro_batch=1")
        assert (least.need.process_bytes, least.need.high_bytes) == (row.process_bytes, row.high_bytes)
        if row.gpus_per_node > 1 and ok(row):
            fewer = [word for word in row.overrides if not word.startswith("gpus=")]
            assert nobody_or_too_large(*WORDS, *fewer, f"gpus={row.gpus_per_node // 2}")


def nobody_or_too_large(*words: str) -> bool:
    """Whether a job does not fit, or cannot be: on one rank there is nothing to shard over."""
    try:
        return not fits(*words)
    except InputError as error:
        return "on 1 rank shards nothing" in str(error)


def test_offload_is_shown_only_where_it_saves_gpus(table: Answer) -> None:
    for method in MethodKind:
        rows = [row for row in table.rows if row.method is method]
        fewest = min((row.gpus_per_node for row in rows if row.offload is Offload.NONE and ok(row)), default=99)
        assert all(ok(row) and row.gpus_per_node < fewest for row in rows if row.offload is not Offload.NONE)


def ok(row: Row) -> bool:
    return row.verdict is Verdict.FITS


def test_nothing_larger_fits_than_the_largest(table: Answer) -> None:
    """The micro batch with a global batch that holds it; the sequence with micro batch 1, in steps of 64 tokens."""
    fitting = [row for row in table.rows if ok(row)]
    assert len(fitting) > 6
    for row in fitting:
        batch, length = row.largest_micro_batch, row.longest_sequence
        assert batch is not None
        assert length is not None
        assert fits(*WORDS, *row.overrides, *with_batch(row, batch))
        assert not fits(*WORDS, *row.overrides, *with_batch(row, batch + 1))
        assert fits(*WORDS, *row.overrides, "train.micro_batch=1", f"train.sequence_length={length}")
        longer = length + SEQUENCE_STEP
        if longer <= 8192:
            assert not fits(*WORDS, *row.overrides, "train.micro_batch=1", f"train.sequence_length={longer}")


def with_batch(row: Row, micro_batch: int) -> tuple[str, str]:
    multiple = micro_batch * row.gpus_per_node
    return f"train.micro_batch={micro_batch}", f"train.global_batch={ceil_div(16, multiple) * multiple}"


def test_the_quickest_row_is_one(table: Answer) -> None:
    times = [row.time_ratio for row in table.rows if row.time_ratio is not None]
    assert min(times) == 1
    assert all((row.time_ratio is None) != ok(row) for row in table.rows)


def test_given_words_stay_and_the_rest_is_open() -> None:
    found = asked(*WORDS, "method=lora", "gpus=2")
    assert {(row.method, row.gpus_per_node) for row in found.rows} == {(MethodKind.LORA, 2)}
    assert {row.shard for row in found.rows} == set(ShardKind)
    found = asked(*WORDS, "shard.offload=all", "gpus=1")
    assert {(row.shard, row.offload) for row in found.rows} == {
        (s, Offload.ALL) for s in (ShardKind.FSDP, ShardKind.ZERO3)
    }
    found = asked(*WORDS, "gpus=1")
    assert {row.shard for row in found.rows if row.offload is Offload.NONE} == {ShardKind.DDP}
    assert {refusal.overrides for refusal in found.refused} == {
        (f"method={method}", f"shard={shard}") for method in MethodKind for shard in ("zero2", "fsdp", "zero3")
    }


def test_a_named_micro_batch_is_what_a_row_needs() -> None:
    (row,) = asked(*WORDS, "method=lora", "shard=ddp", "gpus=1", "train.micro_batch=2").rows
    assert row.process_bytes == plan(*WORDS, "method=lora", "gpus=1", "train.micro_batch=2").process_bytes
    assert row.micro_batch == 2


def test_no_card_is_answered_with_cards() -> None:
    found = asked("model=qwen2.5-7b", "method=qlora")
    assert all(row.verdict is Verdict.NO_CARD and row.smallest_card for row in found.rows)
    assert found.something_fits
    for row in found.rows:
        assert row.smallest_card == plan("model=qwen2.5-7b", "method=qlora", *row.overrides).smallest_card


def test_this_hosts_cards_are_taken_where_none_is_named() -> None:
    found = asked("model=llama3-8b", "method=lora", gpu="l40s")
    assert found.device.name == "l40s"
    assert max(row.gpus_per_node for row in found.rows) <= 8


def test_other_cards_and_fewest_gpus_of_a_job() -> None:
    words = ("model=llama3-8b", "method=full", "shard=zero3", "device=h100-80g")
    job = asked(*words, "gpus=8").job
    assert job is not None
    assert job.fewest_gpus is not None
    assert fits(*words, f"gpus={job.fewest_gpus}")
    assert not fits(*words, f"gpus={job.fewest_gpus // 2}")
    spec = spec_of("mode=plan", *words, "gpus=8")
    estimator = Estimator(model_shape(spec.model.config))
    every = [c for c in CARDS if can_compute(c, spec) and estimator.best(dataclasses.replace(spec, device=c)).fits]
    smallest = min(every, key=lambda card: card.memory_bytes or 0)
    assert smallest_card_of(estimator, spec, CARDS) == f"{smallest.name} x 8"
    assert f"{smallest.name} x 8" in job.cards


WRONG = (
    (("model=lama3-8b",), ["model=lama3-8b is not known: did you mean llama3-8b?"]),
    (("device=rtx490", "metod=lora"), [
        "device=rtx490 is not known: did you mean rtx4090?",
        "metod=lora is not an option: did you mean method?",
    ]),
    (("mode=run", "model=llama3-8b"), ["mode has no effect on what fits: leave it out"]),
    (("train.sequence_length=100000", "model=llama3-8b"), [
        "train.sequence_length=100000 is longer than the 8192 positions of llama3-8b: use 8192 or less"
    ]),
)  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), WRONG, ids=lambda value: " ".join(value))
def test_wrong_words(words: tuple[str, ...], expected: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        asked(*words)
    assert [str(problem) for problem in caught.value.problems] == expected


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["fit", "model=llama3-8b", "device=rtx4090", "method=qlora", "gpus=1"]) == 0
    assert run_cli(["fit", "model=llama3-8b", "device=rtx4060-8g", "method=full", "shard=ddp", "gpus=1"]) == 3
    assert run_cli(["fit", "model=llama3-8bb"]) == 2
    assert run_cli(["fit"]) == 2
    assert "fitlaunch fit model=llama3-8b device=rtx4090" in capsys.readouterr().out


@given(st.integers(0, 50), st.integers(0, 40), st.integers(1, 300), st.lists(st.integers(0, 9), max_size=300))
def test_largest_within_is_what_trying_all_finds(start: int, limit: int, most: int, steps: list[int]) -> None:
    needs = [start]
    for step in (*steps, *[1] * most)[:most]:
        needs.append(needs[-1] + step)
    within = [number for number in range(1, most + 1) if needs[number] <= limit]
    assert largest_within(needs.__getitem__, limit, 1, most) == (max(within) if within else None)


def test_straight_needs_take_few_tries() -> None:
    tried = []
    assert largest_within(lambda number: tried.append(number) or 7 * number, 7 * 613, 1, 100_000) == 613
    assert len(tried) <= 5
