"""What a node does not see of a job's model and data."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from launcher.node import inputs
from launcher.node.inputs import server_answers, unseen_inputs
from launcher.spec import DataSpec, JobSpec, ModelSpec
from tests.launching import make_spec

HUB_MODEL = make_spec().model


def job(model: ModelSpec, data: DataSpec | None = None) -> JobSpec:
    spec = make_spec()
    return dataclasses.replace(spec, model=model, data=data or spec.data)


def at_path(folder: Path) -> ModelSpec:
    return dataclasses.replace(HUB_MODEL, source="path", path=str(folder), hub_id=None, revision=None)


def never(_: str) -> bool:
    return False


def test_a_model_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    spec = job(at_path(folder))
    assert unseen_inputs(spec, {}) == (f"model.path={folder} cannot be read: it has no config.json here",)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert unseen_inputs(spec, {}) == (f"model.path={folder} has no weights here (*.safetensors)",)
    (folder / "model.safetensors").touch()
    assert unseen_inputs(spec, {}) == ()


def test_data_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).touch()
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    held_out.touch()
    data = dataclasses.replace(make_spec().data, name="alpaca", path=str(train), eval_path=str(held_out))
    assert unseen_inputs(job(at_path(model), data), {}) == (f"data.path={train} cannot be read",)


def cached(tmp_path: Path, *, weights: bool = True) -> dict[str, str]:
    repository = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123\n")
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    if weights:
        (snapshot / "model.safetensors").touch()
    return {"HF_HOME": str(tmp_path)}


def test_a_model_of_the_hub_that_is_cached(tmp_path: Path) -> None:
    assert unseen_inputs(job(HUB_MODEL), {**cached(tmp_path), "HF_HUB_OFFLINE": "1"}, never) == ()


def test_a_model_of_the_hub_that_is_neither_cached_nor_to_be_had(tmp_path: Path) -> None:
    env = cached(tmp_path, weights=False)
    (text,) = unseen_inputs(job(HUB_MODEL), env, never)
    assert text == (
        f"HuggingFaceTB/SmolLM2-135M-Instruct is not in the cache {tmp_path}/hub, and the hub cannot be reached: "
        "download it once on a node that can"
    )
    assert unseen_inputs(job(HUB_MODEL), env, lambda _: True) == ()
    assert unseen_inputs(job(HUB_MODEL), {**env, "HF_HUB_OFFLINE": "1"}, lambda _: True) == (text,)


def test_which_server_is_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def answers(url: str) -> bool:
        asked.append(url)
        return True

    unseen_inputs(job(HUB_MODEL), {"HF_HOME": str(tmp_path)}, answers)
    unseen_inputs(job(HUB_MODEL), {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "https://mirror:8443"}, answers)
    unseen_inputs(job(HUB_MODEL), {"HF_HOME": str(tmp_path), "https_proxy": "http://proxy"}, answers)
    assert asked == ["https://huggingface.co", "https://mirror:8443"]


def test_a_server_that_answers_and_one_that_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert server_answers(f"http://127.0.0.1:{port}")
    assert not server_answers(f"http://127.0.0.1:{port}")


def test_the_embedded_models_package(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = job(dataclasses.replace(HUB_MODEL, source="embedded"))
    monkeypatch.setattr(inputs, "EMBEDDED_WHEEL", "no-such-package-of-ours")
    assert unseen_inputs(spec, {}) == ("the embedded model's package no-such-package-of-ours is not installed here",)
