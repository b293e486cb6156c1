"""The loss curve: which points are drawn, and that a picture is there exactly when there is something to draw."""

from __future__ import annotations

import dataclasses
import struct
import subprocess
import sys
from pathlib import Path

from launcher.report.curve import draw_curve, newest_by_step, smoothed
from launcher.runs.records import append_record
from launcher.runs.tail import read_metrics
from tests.report_fixtures import eval_metrics, train_metrics

ROOT = Path(__file__).parents[2]
RUN = (eval_metrics(0, 3.0), *(train_metrics(step) for step in range(1, 21)), eval_metrics(20, 1.2))


def size_of_png(path: Path) -> tuple[int, int]:
    """Width and height out of a PNG's header (RFC 2083, 4.1.1)."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_draws_a_png(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    assert draw_curve(RUN, path, title="run\ntiny, LoRA") is True
    assert size_of_png(path) == (960, 540)
    assert 5_000 < path.stat().st_size < 500_000


def test_draws_what_there_is_of_a_run(tmp_path: Path) -> None:
    for number, metrics in enumerate((RUN[:1], RUN[1:2], tuple(train_metrics(n, num_steps=90) for n in range(1, 91)))):
        path = tmp_path / f"{number}.png"
        assert draw_curve(metrics, path, title="part")
        assert size_of_png(path) == (960, 540)


def test_leaves_no_file_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    assert draw_curve((), path, title="empty") is False
    assert not path.exists()


def test_a_resumed_attempt_replaces_the_steps_it_repeats() -> None:
    first = [train_metrics(step) for step in (1, 2, 3)]
    again = [dataclasses.replace(train_metrics(step), attempt=2, loss=0.5) for step in (3, 4)]
    train, evaluation = newest_by_step([*first, eval_metrics(3, 2.0), *again, eval_metrics(3, 1.0)])
    assert [(item.step, item.attempt) for item in train] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [(item.step, item.loss) for item in evaluation] == [(3, 1.0)]


def test_smoothing_takes_centred_means_and_shorter_ones_at_the_ends() -> None:
    assert smoothed([1.0, 2.0, 6.0, 3.0], 3) == [1.5, 3.0, 11 / 3, 4.5]
    assert smoothed([1.0, 5.0], 1) == [1.0, 5.0]


def test_metrics_cut_off_in_the_middle_of_a_line_are_drawn_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for item in RUN[:3]:
        append_record(path, item)
    path.write_bytes(path.read_bytes() + b'{"kind":"train","time_s":1')
    assert read_metrics(path) == RUN[:3]
    assert read_metrics(tmp_path / "none.jsonl") == ()


def test_drawing_imports_no_torch_and_no_window(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from launcher.report.curve import draw_curve
assert "matplotlib" not in sys.modules, "imported before anything is drawn"
from tests.report_fixtures import train_metrics
assert draw_curve([train_metrics(1), train_metrics(2)], Path({str(tmp_path / "loss.png")!r}), title="t")
print(sorted({{"torch", "transformers", "numpy.f2py", "tkinter", "matplotlib.pyplot"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
