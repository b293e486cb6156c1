"""Evaluate, generate and merge on runs that were put together here: a tiny base with an adapter, or a whole model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs import evaluate, generate, merge
from jobs.checkpoint import write_manifest
from jobs.finished import NoResult, attach_result, load_base, models, open_run
from jobs.model import load_model, load_tokenizer
from launcher.runs.layout import RunFolder
from launcher.spec import JobSpec, MethodKind, Precision, to_json
from tests.ranks import make_spec
from tests.tiny import make_alpaca_file, make_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FITLAUNCH_CACHE", str(tmp_path / "cache"))


def finish(
    root: Path, base: Path, method: MethodKind, precision: Precision = Precision.FP32, eval_fraction: float = 0.15
) -> RunFolder:
    """A run folder with a complete result whose trained weights are far from where they began."""
    spec = make_spec(base, make_alpaca_file(root / "data.jsonl", 40), method=method, precision=precision)
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, eval_fraction=eval_fraction))
    run = RunFolder(root / "run")
    run.root.mkdir()
    run.job.write_text(to_json(spec))
    torch.manual_seed(1)
    model = load_model(spec, device=CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(run.result)
    load_tokenizer(spec).save_pretrained(run.result)
    manifest(run, spec)
    return run


def manifest(run: RunFolder, spec: JobSpec) -> None:
    write_manifest(run.result, run_id="run", attempt=0, step=6, plan_hash="none", spec=spec)


@pytest.mark.parametrize("method", MethodKind)
def test_evaluate_measures_what_each_model_loses(tmp_path: Path, base: Path, method: MethodKind) -> None:
    run = open_run(finish(tmp_path, base, method).root)
    losses = evaluate.evaluate(run, CPU)
    assert losses.num_samples == 6
    tokenizer = AutoTokenizer.from_pretrained(base)
    data = evaluate.load_data(run.spec, tokenizer)
    expected = {}
    for name, model in models(run, CPU):
        total = 0.0
        for row in data.eval:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=labels).loss) * int((labels != -100).sum())
        expected[name] = total / losses.num_tokens
    assert losses.base == pytest.approx(expected["base"], abs=2e-3 if method is MethodKind.QLORA else 1e-5)
    assert losses.result == pytest.approx(expected["result"], abs=2e-3 if method is MethodKind.QLORA else 1e-5)
    assert abs(losses.base - losses.result) > 0.01


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16_MIXED])
@pytest.mark.parametrize("method", [MethodKind.LORA, MethodKind.QLORA])
def test_merged_is_base_and_adapter(
    tmp_path: Path, base: Path, method: MethodKind, precision: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finish(tmp_path, base, method, precision)
    assert merge.main(["--run", str(folder.root)]) == 0
    told = capsys.readouterr().err
    assert ("quantised" in told) == (method is MethodKind.QLORA)
    merged = AutoModelForCausalLM.from_pretrained(folder.root / "merged").eval()
    assert not isinstance(merged, PeftModel)
    assert merged.dtype == {Precision.FP32: torch.float32, Precision.BF16_MIXED: torch.bfloat16}[precision]
    run = open_run(folder.root)
    adapted = attach_result(load_base(run, CPU, quantised=False), run)
    plain = load_base(run, CPU, quantised=False)
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        expected, actual, before = (model(input_ids=ids).logits.float() for model in (adapted, merged, plain))
    largest = expected.abs().max()
    assert (expected - actual).abs().max() / largest <= merge.TOLERANCE[run.dtype]
    assert (expected - before).abs().max() / largest > 2 * merge.TOLERANCE[run.dtype]  # the adapter does something
    assert AutoTokenizer.from_pretrained(folder.root / "merged").chat_template
    assert sorted(path.name for path in folder.root.iterdir()) == ["job.json", "merged", "result"]
    assert (folder.root / "merged").stat().st_mode & 0o777 == 0o755


def test_merge_refuses_what_differs_and_saves_nothing(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finish(tmp_path, base, MethodKind.LORA)
    unmerged = load_base(open_run(folder.root), CPU, quantised=False)
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: unmerged, raising=False)
    assert merge.main(["--run", str(folder.root)]) == 5
    assert "nothing was saved" in capsys.readouterr().err
    assert sorted(path.name for path in folder.root.iterdir()) == ["job.json", "result"]


def test_merge_says_why_not(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    full = finish(tmp_path / "full", base, MethodKind.FULL)
    capsys.readouterr()  # progress bars
    assert merge.main(["--run", str(full.root)]) == 2
    assert capsys.readouterr().err == (
        f"the run trained the whole model: {full.result} is it, and nothing is to be merged\n"
    )
    (tmp_path / "lora").mkdir()
    lora = finish(tmp_path / "lora", base, MethodKind.LORA)
    (lora.root / "merged").mkdir()
    capsys.readouterr()
    assert merge.main(["--run", str(lora.root)]) == 2
    assert capsys.readouterr().err == (
        f"{lora.root / 'merged'} exists already: remove it, or name another place with --output\n"
    )


def test_only_a_complete_result_is_opened(tmp_path: Path, base: Path) -> None:
    with pytest.raises(NoResult, match="is no run folder"):
        open_run(tmp_path)
    folder = finish(tmp_path, base, MethodKind.LORA)
    weights = folder.result / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(NoResult, match="no complete result"):
        open_run(folder.root)
    weights.write_bytes(whole)
    assert open_run(folder.root).has_adapter
    shutil.rmtree(folder.result)
    with pytest.raises(NoResult, match="no complete result"):
        open_run(folder.root)


@pytest.mark.parametrize("method", [MethodKind.FULL, MethodKind.LORA])
def test_generate_asks_both_models(
    tmp_path: Path, base: Path, method: MethodKind, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finish(tmp_path, base, method)
    arguments = ["--run", str(folder.root), "--max-new-tokens", "5", "--json"]
    assert generate.main([*arguments, "--prompt", "Why?", "--prompt", "[red]How?[/red]"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert [answer["prompt"] for answer in given] == ["Why?", "[red]How?[/red]"]
    assert [answer["expected"] for answer in given] == [None, None]
    assert all(answer["base"] != answer["result"] for answer in given)
    assert generate.main(arguments) == 0
    asked = json.loads(capsys.readouterr().out)
    held_out = {json.loads(line)["output"] for line in (tmp_path / "data.jsonl").read_text().splitlines()}
    assert len(asked) == generate.NUM_DEFAULT_PROMPTS
    assert all(answer["expected"] in held_out for answer in asked)
    assert generate.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == asked  # greedy
    assert generate.main(arguments[:-1]) == 0
    assert "expected" in capsys.readouterr().err


def test_generate_asks_the_merged_model(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finish(tmp_path, base, MethodKind.LORA)
    arguments = ["--run", str(folder.root), "--max-new-tokens", "5", "--json", "--prompt", "Why?"]
    assert generate.main([*arguments, "--merged"]) == 2
    assert "no merged model yet" in capsys.readouterr().err
    assert merge.main(["--run", str(folder.root)]) == 0
    assert generate.main(arguments) == 0
    with_adapter = json.loads(capsys.readouterr().out)
    assert generate.main([*arguments, "--merged"]) == 0
    assert json.loads(capsys.readouterr().out) == with_adapter


def test_evaluate_without_held_out_rows(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finish(tmp_path, base, MethodKind.LORA, eval_fraction=0.0)
    assert evaluate.main(["--run", str(folder.root)]) == 2
    assert "held no rows out" in capsys.readouterr().err
