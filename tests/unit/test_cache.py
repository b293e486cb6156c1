"""jobs.cache: an entry is whole or absent, and built once however many processes ask."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from jobs.cache import build_once, cache_dir

SPAWN = multiprocessing.get_context("fork")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("FITLAUNCH_CACHE", raising=False)
    assert cache_dir() == Path("/home/ann/.cache/fitlaunch")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/fitlaunch")
    monkeypatch.setenv("FITLAUNCH_CACHE", "~/mine")
    assert cache_dir() == Path("/home/ann/mine")


def _count(entry: Path, counter: Path) -> None:
    def build(path: Path) -> None:
        with counter.open("a") as file:
            file.write("built\n")
        time.sleep(0.1)
        path.mkdir()

    build_once(entry, build)
    assert entry.is_dir()


def test_built_by_one_of_many(tmp_path: Path) -> None:
    counter, entry = tmp_path / "counter", tmp_path / "cache" / "entry"
    workers = [SPAWN.Process(target=_count, args=(entry, counter)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert counter.read_text() == "built\n"
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]


def _hang(entry: Path, began: Path) -> None:
    def build(path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        began.touch()
        time.sleep(60)

    build_once(entry, build)


def test_a_killed_builder_leaves_nothing_that_counts(tmp_path: Path) -> None:
    began, entry = tmp_path / "began", tmp_path / "cache" / "entry"
    worker = SPAWN.Process(target=_hang, args=(entry, began))
    worker.start()
    deadline = time.monotonic() + 20
    while not began.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(20)
    assert not entry.exists()

    def build(path: Path) -> None:
        path.mkdir()
        (path / "whole").touch()

    build_once(entry, build)
    assert [path.name for path in entry.iterdir()] == ["whole"]
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        path.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"^disk full$"):
        build_once(tmp_path / "cache" / "entry", build)
    assert list((tmp_path / "cache").iterdir()) == []
