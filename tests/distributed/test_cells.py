"""The twelve cells, method by sharding, on two real ranks in two precisions.

Exit codes and losses alone would pass a job that shards nothing, so each cell is held to what it is made of: its
wrapper, its local elements, its dtypes, the rows its ranks took. Then to DDP step by step, to its own result
loaded in one process, and to itself after going on from a checkpoint.
"""

from __future__ import annotations

import json
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from launcher.models import model_shape, read_config
from launcher.planner import disk
from launcher.planner.estimate import Estimator
from launcher.runs.layout import RunFolder
from launcher.runs.records import Finished, RankMeasurement, Stopped, read_record
from launcher.spec import ActivationCheckpointing, JobSpec, MethodKind, Precision, ShardKind
from tests.ranks import (
    log_text,
    losses,
    make_spec,
    metrics,
    run_ranks,
    start_ranks,
    started,
    wait_for,
    wait_for_step,
    write_run,
)
from tests.tiny import make_alpaca_file, make_tiny_model

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

PRECISIONS = (Precision.FP32, Precision.BF16_MIXED)
CELLS = [(precision, method, shard) for precision in PRECISIONS for method in MethodKind for shard in ShardKind]
WRAPPER = {
    ShardKind.DDP: "DistributedDataParallel",
    ShardKind.FSDP: "FSDPModule",
    ShardKind.ZERO2: "DeepSpeedEngine",
    ShardKind.ZERO3: "DeepSpeedEngine",
}
ENGINES = (ShardKind.ZERO2, ShardKind.ZERO3)
SPLIT = (ShardKind.FSDP, ShardKind.ZERO3)
NUM_PARAMETERS = 139_584  # of the tiny model
NUM_QUANTISED = 73_728  # of them in the linear layers of its two blocks
NUM_QUANTISED_TENSORS = 14
NUM_ADAPTER = 8_192

# How far a cell's losses may be from DDP's in the same step. Measured: 1.5e-6; in bf16 4.1e-3 (full), 1.8e-4 (LoRA).
FP32_LOSS = 5e-6
BF16_LOSS = {MethodKind.FULL: 1e-2, MethodKind.LORA: 5e-4, MethodKind.QLORA: 5e-4}
# How far the result, loaded in one process, may be from the evaluation at the end of the run. A full bf16_mixed run
# evaluates with fp32 master weights or autocast, and its result is saved in bf16.
RELOADED_LOSS = {Precision.FP32: 5e-6, Precision.BF16_MIXED: 5e-3}


@dataclass(frozen=True, slots=True)
class Cell:
    spec: JobSpec
    run: RunFolder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("cells")
    make_tiny_model(root / "model")
    make_alpaca_file(root / "data.json", 80)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FITLAUNCH_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="module")
def cell_of(tiny: Path) -> Callable[..., Cell]:
    """Runs a cell once and keeps it: six steps, with a checkpoint after the third."""
    done: dict[tuple[Precision, MethodKind, ShardKind], Cell] = {}

    def cell(precision: Precision, method: MethodKind, shard: ShardKind) -> Cell:
        key = (precision, method, shard)
        if key not in done:
            spec = spec_of(tiny, precision=precision, method=method, shard=shard, save_every_steps=3)
            run = write_run(tiny / "-".join(key), spec)
            assert run_ranks(run, spec) == 0, log_text(run)
            done[key] = Cell(spec, run)
        return done[key]

    return cell


def spec_of(tiny: Path, **changes: Any) -> JobSpec:
    return make_spec(tiny / "model", tiny / "data.json", **changes)


@pytest.mark.parametrize(("precision", "method", "shard"), CELLS)
def test_a_cell_is_what_it_says(
    cell_of: Callable[..., Cell], precision: Precision, method: MethodKind, shard: ShardKind
) -> None:
    cell = cell_of(precision, method, shard)
    record = started(cell.run)
    assert record.wrapper == WRAPPER[shard]
    assert record.world_size == 2
    assert record.resumed_from_step is None
    checks = record.checks
    assert checks["backend"] == "gloo"
    assert (checks["first_step_rows"], checks["first_step_distinct_rows"]) == (8, 8)
    assert_elements(checks, method, shard)
    assert_dtypes(checks, precision, method, shard)
    measured = [read_record(cell.run.measured(1, rank), RankMeasurement) for rank in (0, 1)]
    assert all(m is not None and 0 < m.allocated_bytes < m.rss_bytes for m in measured)
    example = cell.run.first_example.read_text()
    assert example.count("⟦") == example.count("⟧") == 1
    assert not example.startswith("⟦")  # the prompt is not learned


def assert_elements(checks: dict[str, Any], method: MethodKind, shard: ShardKind) -> None:
    """How many elements there are, and how many of them each rank holds."""
    total = {kind: group["num_elements"] for kind, group in checks["parameters"].items()}
    assert (
        set(total)
        == {
            MethodKind.FULL: {"trained"},
            MethodKind.LORA: {"trained", "frozen"},
            MethodKind.QLORA: {"trained", "frozen", "quantised"},
        }[method]
    )
    assert total["trained"] == (NUM_PARAMETERS if method is MethodKind.FULL else NUM_ADAPTER)
    for kind, num_elements in total.items():
        on_ranks = [rank[kind] for rank in checks["local_elements_by_rank"]]
        assert on_ranks == ([num_elements // 2] * 2 if shard in SPLIT else [num_elements] * 2)
    moments = [2 * total["trained"] // (1 if shard is ShardKind.DDP else 2)] * 2
    assert checks["optimizer_elements_by_rank"] == moments


def assert_dtypes(checks: dict[str, Any], precision: Precision, method: MethodKind, shard: ShardKind) -> None:
    """Mixed precision is fp32 in DDP's and FSDP2's parameters, and in a master beside DeepSpeed's bf16 ones."""
    half = "float32" if precision is Precision.FP32 else "bfloat16"
    trained = half if shard in ENGINES else "float32"
    found = {kind: list(group["dtypes"]) for kind, group in checks["parameters"].items()}
    expected = {"trained": [trained]}
    if method is not MethodKind.FULL:
        expected["frozen"] = [half]
    if method is MethodKind.QLORA:
        expected["quantised"] = [half if shard is ShardKind.FSDP else "uint8"]
    assert found == expected
    assert checks["gradient_dtypes"] == [trained]
    assert checks["master_dtypes"] == (["float32"] if shard in ENGINES else [])
    assert checks["optimizer_states"]["dtypes"] == ["float32"]


@pytest.mark.parametrize("shard", ShardKind)
def test_a_tied_head_is_trained_and_saved_once(tiny: Path, shard: ShardKind) -> None:
    model = make_tiny_model(tiny / f"tied-model-{shard}", tied=True)
    spec = make_spec(
        model, tiny / "data.json", method=MethodKind.FULL, shard=shard, precision=Precision.BF16_MIXED, max_steps=3
    )
    run = write_run(tiny / f"tied-{shard}", spec)
    assert run_ranks(run, spec) == 0, log_text(run)
    saved = load_file(run.result / "model.safetensors")
    assert "lm_head.weight" not in saved
    finished = read_record(run.finished(1), Finished)
    assert finished is not None
    assert evaluate(load_plainly(Cell(spec, run)), spec) == pytest.approx(finished.eval_loss_after, abs=5e-3)


@pytest.mark.parametrize("shard", ShardKind)
def test_pure_bf16_holds_nothing_in_fp32(tiny: Path, shard: ShardKind) -> None:
    spec = spec_of(tiny, method=MethodKind.FULL, shard=shard, precision=Precision.BF16_PURE, max_steps=2)
    run = write_run(tiny / f"pure-{shard}", spec)
    assert run_ranks(run, spec) == 0, log_text(run)
    checks = started(run).checks
    assert list(checks["parameters"]["trained"]["dtypes"]) == ["bfloat16"]
    assert checks["gradient_dtypes"] == ["bfloat16"]
    assert checks["master_dtypes"] == (["bfloat16"] if shard in ENGINES else [])
    assert checks["optimizer_states"]["dtypes"] == ["bfloat16"]


@pytest.mark.parametrize(("precision", "method", "shard"), [cell for cell in CELLS if cell[2] is not ShardKind.DDP])
def test_a_cell_trains_as_ddp_does(
    cell_of: Callable[..., Cell], precision: Precision, method: MethodKind, shard: ShardKind
) -> None:
    reference, cell = cell_of(precision, method, ShardKind.DDP), cell_of(precision, method, shard)
    tolerance = FP32_LOSS if precision is Precision.FP32 else BF16_LOSS[method]
    assert losses(cell.run) == pytest.approx(losses(reference.run), abs=tolerance)
    evaluated = [(line["step"], line["loss"]) for line in metrics(reference.run, "eval")]
    for line, (step, loss) in zip(metrics(cell.run, "eval"), evaluated, strict=True):
        assert line["step"] == step
        assert line["loss"] == pytest.approx(loss, abs=tolerance)


@pytest.mark.parametrize(("precision", "method", "shard"), CELLS)
def test_a_result_loads_in_one_process(
    cell_of: Callable[..., Cell], precision: Precision, method: MethodKind, shard: ShardKind
) -> None:
    cell = cell_of(precision, method, shard)
    finished = read_record(cell.run.finished(1), Finished)
    assert finished is not None
    assert finished.eval_loss_before is not None
    assert finished.eval_loss_after is not None
    assert finished.eval_loss_after < finished.eval_loss_before - 0.1
    saved = load_file(next(cell.run.result.glob("*.safetensors")))
    assert sum(t.numel() for t in saved.values()) == (NUM_PARAMETERS if method is MethodKind.FULL else NUM_ADAPTER)
    assert all(bool(t.isfinite().all()) for t in saved.values())
    loss = evaluate(load_plainly(cell), cell.spec)
    assert loss == pytest.approx(finished.eval_loss_after, abs=RELOADED_LOSS[precision])


@pytest.mark.parametrize(("precision", "method", "shard"), CELLS)
def test_a_cell_takes_the_disk_that_was_planned(
    cell_of: Callable[..., Cell], precision: Precision, method: MethodKind, shard: ShardKind
) -> None:
    """To the byte of their tensors, but for the descriptions of 4-bit ones. Headers, tokenizer and random states come
    on top."""
    cell = cell_of(precision, method, shard)
    config = read_config(Path(cell.spec.model.path or ""))
    work = Estimator(model_shape(config)).workload(cell.spec)
    described = NUM_QUANTISED_TENSORS * 2 if method is MethodKind.QLORA and shard in ENGINES else 0
    planned = disk.total_bytes(disk.checkpoint_terms(work))
    assert tensor_bytes(cell.run.checkpoints / "checkpoint-3") == pytest.approx(planned, abs=16 * described)
    assert tensor_bytes(cell.run.result) == disk.total_bytes(disk.result_terms(work))


def tensor_bytes(folder: Path) -> int:
    """What the files hold of weights and optimizer states, without their headers."""
    total = 0
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
        elif path.suffix in (".pt", ".bin") and path.stem not in ("scheduler", "training_args"):
            with zipfile.ZipFile(path) as archive:
                total += sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
    return total


def load_plainly(cell: Cell) -> Any:
    """The result as anyone would load it: transformers for a model, peft for an adapter on its base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.float32 if cell.spec.train.precision is Precision.FP32 else torch.bfloat16
    if cell.spec.method.kind is MethodKind.FULL:
        model = AutoModelForCausalLM.from_pretrained(cell.run.result)
        assert model.dtype == dtype
        return model
    quantised = {}
    if cell.spec.method.kind is MethodKind.QLORA:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        quantised = {"quantization_config": config}
    base = AutoModelForCausalLM.from_pretrained(cell.spec.model.path, dtype=dtype, **quantised)
    return PeftModel.from_pretrained(base, str(cell.run.result))


def evaluate(model: Any, spec: JobSpec) -> float:
    """The mean loss over all held-out tokens, one row at a time and in fp32, with nothing of the job's own loop.

    In training mode, which changes nothing in this model (no dropout), but keeps bitsandbytes from repacking
    4-bit weights for its less exact inference kernel on CPU.
    """
    from transformers import AutoTokenizer

    from jobs.data import load_data

    data = load_data(spec, AutoTokenizer.from_pretrained(spec.model.path))
    assert data.eval is not None
    model.train()
    loss_sum, num_tokens = 0.0, 0
    for row in data.eval:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        loss_sum += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        num_tokens += int((labels != -100).sum())
    return loss_sum / num_tokens


@pytest.mark.parametrize(("precision", "method", "shard"), CELLS)
def test_a_cell_goes_on_from_its_checkpoint(
    cell_of: Callable[..., Cell], precision: Precision, method: MethodKind, shard: ShardKind
) -> None:
    cell = cell_of(precision, method, shard)
    assert run_ranks(cell.run, cell.spec, attempt=2) == 0, log_text(cell.run, 2)
    assert started(cell.run, 2).resumed_from_step == 3
    uninterrupted, resumed = losses(cell.run, 1), losses(cell.run, 2)
    assert sorted(resumed) == [4, 5, 6]
    assert resumed == pytest.approx({step: uninterrupted[step] for step in resumed}, abs=5e-6)
    first, second = read_record(cell.run.finished(1), Finished), read_record(cell.run.finished(2), Finished)
    assert first is not None
    assert second is not None
    assert second.eval_loss_before == first.eval_loss_before
    assert second.eval_loss_after == pytest.approx(first.eval_loss_after, abs=5e-6)


@pytest.mark.parametrize(
    ("method", "shard"),
    [(MethodKind.LORA, ShardKind.DDP), (MethodKind.FULL, ShardKind.FSDP), (MethodKind.QLORA, ShardKind.ZERO3)],
)
def test_a_stop_leaves_a_checkpoint_and_no_result(
    tiny: Path, cell_of: Callable[..., Cell], method: MethodKind, shard: ShardKind
) -> None:
    spec = spec_of(tiny, method=method, shard=shard)
    run = write_run(tiny / f"stopped-{method}-{shard}", spec)
    run.stop_file(1).parent.mkdir(parents=True)
    run.stop_file(1).touch()  # already there: every rank sees it at the end of its first step
    assert run_ranks(run, spec) == 0, log_text(run)
    stopped = read_record(run.stopped(1), Stopped)
    assert stopped is not None
    assert (stopped.step, stopped.cause) == (1, "stop file")
    assert stopped.checkpoint == str(run.checkpoints / "checkpoint-1")
    assert not run.finished(1).exists()
    assert not run.result.exists()
    assert run_ranks(run, spec, attempt=2) == 0, log_text(run, 2)
    assert started(run, 2).resumed_from_step == 1
    reference = losses(cell_of(Precision.FP32, method, shard).run, 1)
    assert losses(run) == pytest.approx(reference, abs=5e-6)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tiny: Path) -> None:
    spec = spec_of(tiny, method=MethodKind.FULL, shard=ShardKind.DDP, max_steps=100_000)
    run = write_run(tiny / "signalled", spec)
    process = start_ranks(run, spec)
    wait_for_step(run, process, 1)
    rank1 = next(
        child for child in psutil.Process(process.pid).children(recursive=True) if child.environ().get("RANK") == "1"
    )
    rank1.send_signal(signal.SIGTERM)
    assert wait_for(process) == 0, log_text(run)
    stopped = read_record(run.stopped(1), Stopped)
    assert stopped is not None
    assert stopped.cause == "SIGTERM"
    assert stopped.step == max(losses(run))
    state = json.loads((run.checkpoints / f"checkpoint-{stopped.step}" / "trainer_state.json").read_text())
    assert state["global_step"] == stopped.step
    assert not run.result.exists()


def test_one_rank_trains_as_two_do(tiny: Path, cell_of: Callable[..., Cell]) -> None:
    """The logged loss is the step's, over all ranks, and the evaluation does not depend on their number."""
    spec = spec_of(tiny, method=MethodKind.FULL, world_size=1)
    run = write_run(tiny / "one-rank", spec)
    assert run_ranks(run, spec) == 0, log_text(run)
    assert started(run).wrapper == "none"
    two = cell_of(Precision.FP32, MethodKind.FULL, ShardKind.DDP).run
    assert losses(run) == pytest.approx(losses(two, 1), abs=1e-5)
    assert [line["loss"] for line in metrics(run, "eval")] == pytest.approx(
        [line["loss"] for line in metrics(two, "eval", 1)], abs=1e-5
    )


@pytest.mark.parametrize("shard", [ShardKind.FSDP, ShardKind.ZERO3])
def test_activation_checkpointing_changes_no_loss(tiny: Path, cell_of: Callable[..., Cell], shard: ShardKind) -> None:
    spec = spec_of(tiny, method=MethodKind.FULL, shard=shard, activation_checkpointing=ActivationCheckpointing.FULL)
    run = write_run(tiny / f"recomputed-{shard}", spec)
    assert run_ranks(run, spec) == 0, log_text(run)
    plain = cell_of(Precision.FP32, MethodKind.FULL, shard).run
    assert losses(run) == pytest.approx(losses(plain, 1), abs=FP32_LOSS)


def test_a_rank_whose_launcher_is_gone_ends_itself(tiny: Path) -> None:
    spec = spec_of(tiny, max_steps=100_000)
    run = write_run(tiny / "orphaned", spec)
    process = start_ranks(run, spec, launcher=(process_that_has_ended(), 1))
    began_s = time.monotonic()
    assert wait_for(process) == 1
    assert time.monotonic() - began_s < 60
    assert not run.started(1).exists()


def process_that_has_ended() -> int:
    """The pid of no process."""
    return next(pid for pid in range(4_000_000, 2, -1) if not psutil.pid_exists(pid))


def test_a_changed_plan_is_refused(tiny: Path) -> None:
    spec = spec_of(tiny)
    run = write_run(tiny / "changed", spec)
    run.job.write_text(run.job.read_text().replace('"seed": 7', '"seed": 8'))
    assert run_ranks(run, spec) == 1
    failures = [json.loads(run.failed(1, rank).read_text()) for rank in (0, 1) if run.failed(1, rank).exists()]
    assert failures
    assert {failure["error_type"] for failure in failures} == {"StartRefused"}
    assert not run.started(1).exists()
