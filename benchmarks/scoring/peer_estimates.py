"""Run as a script: questions as JSON on stdin, one estimator's answers as JSON on the last line of stdout.

    python peer_estimates.py deepspeed|accelerate|fitcheck-llm < questions

An answer maps a row's index to bytes by metric; 'any' where the estimator counts model states alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Question = dict[str, Any]
Answer = dict[str, int]
MIB = 1024**2


def deepspeed(asked: list[Question]) -> dict[int, Answer]:
    """deepspeed.runtime.zero's estimate_zero2/3_model_states_mem_needs: 2 B weights and 18 B of states for every
    parameter, trained or not."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    found: dict[int, Answer] = {}
    for row in asked:
        offload, num_gpus = row["offload"], row["num_gpus"]
        if row["sharding"] == "zero2":
            _, size = zero2(row["num_parameters"], num_gpus, 1, cpu_offload=offload != "none")
        elif row["sharding"] == "zero3":
            _, size, _ = zero3(
                row["num_parameters"], row["largest_layer_parameters"], num_gpus, 1,
                cpu_offload=offload != "none", cpu_offload_params=offload == "all",
            )  # fmt: skip
        else:
            continue
        found[row["index"]] = {"any": int(size)}
    return found


def accelerate(asked: list[Question]) -> dict[int, Answer]:
    """accelerate estimate-memory's column 'Training using Adam': the largest of weights, gradients, states and step of
    a full fine-tune at batch size 1. It knows no sharding, so it is asked about single ranks."""
    from accelerate.commands.estimate import estimate_training_usage

    found: dict[int, Answer] = {}
    for row in asked:
        if not row["is_single"]:
            continue
        precision = "float32" if row["is_fp32"] else "bfloat16"
        usage = estimate_training_usage(row["num_parameters"] * 4, precision)
        found[row["index"]] = {"any": int(max(usage.values()))}
    return found


def fitcheck(asked: list[Question]) -> dict[int, Answer]:
    """fitcheck-llm: one card, materialised logits, torch's AdamW or bitsandbytes' 8-bit one. Allocated is its total
    without overhead, process its total, as its own validation compares them."""
    from fitcheck.config_parser import ModelConfig
    from fitcheck.estimator import TrainingConfig, estimate
    from fitcheck.gpu_db import get_gpu

    optimizers = {"adamw": "adamw", "adamw_8bit": "adam8bit"}
    found: dict[int, Answer] = {}
    for row in asked:
        if not row["is_single"] or row["is_fused_loss"] or not row["card"] or row["optimizer"] not in optimizers:
            continue
        is_lora = row["method"] != "full"
        targets = row["lora_targets"]
        if targets == ["all-linear"]:
            targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = ModelConfig(name=row["name"], num_params=row["num_parameters"], **row["shape"])
        is_pure = not row["is_mixed"] and not row["is_fp32"]
        training = TrainingConfig(
            precision="fp32" if row["is_fp32"] else "fp16" if row["is_fp16"] else "bf16",
            quantization="nf4" if row["method"] == "qlora" else "none",
            double_quant=row["double_quant"],
            optimizer=optimizers[row["optimizer"]],
            optimizer_dtype="bf16" if is_pure and not is_lora else "fp32",
            batch_size=row["micro_batch"],
            seq_len=row["sequence_length"],
            lora_rank=row["lora_rank"] if is_lora else None,
            lora_targets=targets if is_lora else [],
            grad_checkpoint=row["checkpointing"],
            flash_attn=row["flash"],
        )
        report = estimate(model, training, get_gpu(row["card"]))
        found[row["index"]] = {
            "allocated": int((report.total_mib - report.overhead_mib) * MIB),
            "process": int(report.total_mib * MIB),
        }
    return found


ESTIMATORS: dict[str, Callable[[list[Question]], dict[int, Answer]]] = {
    "deepspeed": deepspeed,
    "accelerate": accelerate,
    "fitcheck-llm": fitcheck,
}

if __name__ == "__main__":
    print(json.dumps(ESTIMATORS[sys.argv[1]](json.load(sys.stdin))))
