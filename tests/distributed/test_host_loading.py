"""What reading weights takes of host RAM, against the plan: nothing of its own in the dtype of the file, and all of the
model in another. Read from the kernel, in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.synthetic import write_model
from launcher.models import model_shape
from launcher.planner.estimate import Estimator
from launcher.planner.host import host_terms
from launcher.units import MIB
from tests.planner_jobs import job

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(200)]

CONFIG = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 16384,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "dtype": "bfloat16",
}  # fmt: skip
# What the loader itself holds on the way: threads, headers, one tensor.
LOADER_BYTES = 24 * MIB
PROGRAM = """
import sys, torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

def own_bytes():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

before = own_bytes()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print(own_bytes() - before)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, CONFIG)
    return folder


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "bf16_pure"), ("float32", "bf16_mixed")])
def test_reading_takes_what_was_planned(model: Path, dtype: str, precision: str) -> None:
    command = (sys.executable, "-c", PROGRAM, str(model), dtype)
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    config = json.loads((model / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    work = Estimator(model_shape(CONFIG)).workload(job(CONFIG, method="full", precision=precision))
    planned = sum(term.size_bytes for term in host_terms(work, 0) if term.name == "weights, converted while read")
    assert planned == (0 if dtype == "bfloat16" else work.inventory.trained_numel * 4)
    assert planned <= grown + MIB
    assert grown <= planned + LOADER_BYTES
