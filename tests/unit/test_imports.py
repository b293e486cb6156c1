"""Imports go one way, and the launcher's process never imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each part may import itself and what stands after it.
LAYERS = (
    ("cli",),
    ("calibrating",),
    ("main",),
    ("sweeps",),
    ("operate",),
    ("execution",),
    ("workflow",),
    ("report", "targets"),
    ("node",),
    ("runs", "render", "fitting", "scheduler"),
    ("planner",),
    ("compose",),
    ("rules",),
    ("assemble",),
    ("clusters",),
    ("overrides", "reader"),
    ("options",),
    ("shards", "precision", "datafile", "schema", "host", "hostfile", "readings"),
    ("devices", "models"),
    ("paths",),
    ("spec",),
    ("units", "errors", "allowed"),
)
RANK = {name: number for number, layer in enumerate(LAYERS) for name in layer}
HEAVY = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "datasets")
# The file formats that launcher and ranks share, below everything else of launcher.runs.
JOBS_MAY_IMPORT = {
    "launcher.spec",
    "launcher.units",
    "launcher.precision",
    "launcher.shards",
    "launcher.planner.types",
    "launcher.planner.tracing.events",
    "launcher.datafile",
    "launcher.readings",
    "launcher.runs.attempts",
    "launcher.runs.checkpoints",
    "launcher.runs.layout",
    "launcher.runs.records",
    "launcher.render.types",
    "launcher.render.zero_config",
}


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def part(module: str) -> str:
    """The second word of launcher.X.Y."""
    return module.split(".")[1] if "." in module else module


LAUNCHER_FILES = sorted((ROOT / "launcher").rglob("*.py"))


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_launcher_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "launcher").with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no place in LAYERS"
    for module in imports_of(path):
        assert module.split(".")[0] not in HEAVY
        if module.startswith("launcher.") and part(module) != own:
            assert RANK[part(module)] > RANK[own] or (RANK[part(module)] == RANK[own]), f"{own} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").rglob("*.py")), ids=lambda path: path.name)
def test_jobs_import_only_the_shared_formats(path: Path) -> None:
    of_launcher = {module for module in imports_of(path) if module.split(".")[0] == "launcher"}
    assert of_launcher <= JOBS_MAY_IMPORT


@pytest.mark.parametrize("module", ["launcher.main", "launcher.cli"])
def test_the_launcher_never_imports_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
