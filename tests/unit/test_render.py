"""Launch plans as golden files, and held against the parsers of the programs that will read them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.errors import InputError
from launcher.planner.types import MemoryPlan
from launcher.render.environment import HostFacts, inherited_environment, read_host_facts
from launcher.render.render import render
from launcher.render.types import LaunchPlan
from launcher.render.zero_config import deepspeed_config
from launcher.spec import (
    JobSpec,
    MethodKind,
    Offload,
    Precision,
    Program,
    ShardKind,
    TrackerKind,
)
from tests.launching import H100, make_launch, make_memory_plan, make_spec

RUNS = Path("/data/runs")
CASES: dict[str, tuple[JobSpec, HostFacts]] = {
    "lora-ddp-cpu-torchrun": (make_spec(source="embedded"), HostFacts(num_cpus=2)),
    "full-fsdp-cuda-torchrun-wandb": (
        make_spec(method=MethodKind.FULL, shard=ShardKind.FSDP, device=H100, gpus=8, tracker=TrackerKind.WANDB),
        HostFacts(num_cpus=96, has_wandb_key=True),
    ),
    "qlora-fsdp-cuda-torchrun": (
        make_spec(method=MethodKind.QLORA, shard=ShardKind.FSDP, device=H100, gpus=4, source="path"),
        HostFacts(num_cpus=64, visible_devices=("GPU-1f", "GPU-2e", "GPU-3d", "GPU-4c", "GPU-5b")),
    ),
    "full-zero3-offload-cuda-deepspeed": (
        make_spec(
            method=MethodKind.FULL,
            shard=ShardKind.ZERO3,
            offload=Offload.ALL,
            device=H100,
            gpus=2,
            program=Program.DEEPSPEED,
        ),
        HostFacts(num_cpus=32, visible_devices=("4", "5", "6")),
    ),
    "lora-zero2-pure-cpu-deepspeed-wandb": (
        make_spec(
            shard=ShardKind.ZERO2,
            precision=Precision.BF16_PURE,
            program=Program.DEEPSPEED,
            tracker=TrackerKind.WANDB,
        ),
        HostFacts(num_cpus=2),
    ),
    "full-zero2-offload-fp16-cuda-torchrun": (
        make_spec(
            method=MethodKind.FULL,
            shard=ShardKind.ZERO2,
            offload=Offload.OPTIMIZER,
            precision=Precision.FP16_MIXED,
            device=H100,
        ),
        HostFacts(num_cpus=16),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def launch_of(name: str) -> LaunchPlan:
    spec, host = CASES[name]
    return make_launch(RUNS, spec=spec, host=host)


def describe(launch: LaunchPlan) -> str:
    """A launch plan for reading: the command, the environment, the files (the two big ones by name only)."""
    sections = [f"run_dir {launch.run_dir}", "", "argv"]
    sections += [f"  {word}" for word in launch.argv]
    sections += ["", "env"] + [f"  {name}={value}" for name, value in launch.env.items()]
    for name, text in launch.files.items():
        sections += ["", name]
        sections += [f"  {line}" for line in text.splitlines()] if name == "deepspeed.json" else []
    return "\n".join(sections) + "\n"


@every_case
def test_launch_plan(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"launch/{name}.txt", describe(launch_of(name)))


@every_case
def test_the_files_hold_the_job_and_its_plan(name: str) -> None:
    spec, _ = CASES[name]
    files = launch_of(name).files
    assert msgspec.json.decode(files["job.json"], type=JobSpec) == spec
    assert msgspec.json.decode(files["memory_plan.json"], type=MemoryPlan) == make_memory_plan(spec)


@every_case
def test_the_installed_program_takes_the_command(name: str) -> None:
    """Whether an option exists, and none is taken for an abbreviation of another."""
    launch = launch_of(name)
    spec, host = CASES[name]
    parsed = _parse(spec.program, launch.argv[3:])
    if spec.program is Program.TORCHRUN:
        assert (parsed.nproc_per_node, parsed.max_restarts, parsed.shutdown_timeout) == (
            str(spec.gpus_per_node),
            0,
            600,
        )
        assert (parsed.standalone, parsed.module, parsed.log_dir, parsed.redirects) == (True, True, "logs", "3")
        assert (parsed.training_script, parsed.training_script_args) == ("jobs.train", [launch.run_dir])
    else:
        assert (parsed.master_addr, parsed.master_port, parsed.enable_each_rank_log) == ("127.0.0.1", 23_456, "logs")
        assert (parsed.module, parsed.no_local_rank, parsed.hostfile) == (True, True, "/dev/null")
        assert (parsed.user_script, parsed.user_args) == ("jobs.train", [launch.run_dir])
        chosen = "localhost:4,5" if host.visible_devices else ""
        assert (parsed.include, parsed.num_gpus) == (chosen, -1 if chosen else spec.gpus_per_node)


def _parse(program: Program, arguments: tuple[str, ...]) -> Any:
    if program is Program.TORCHRUN:
        from torch.distributed.run import parse_args

        return parse_args(list(arguments))
    from deepspeed.launcher.runner import parse_args as parse_deepspeed

    return parse_deepspeed(list(arguments))


@pytest.mark.parametrize("shard", [ShardKind.ZERO2, ShardKind.ZERO3])
@pytest.mark.parametrize("offload", list(Offload))
def test_deepspeed_knows_every_name_in_its_configuration(shard: ShardKind, offload: Offload) -> None:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = deepspeed_config(make_spec(shard=shard, offload=offload, precision=Precision.BF16_PURE, device=H100))
    zero = config["zero_optimization"]
    known = {name for key, field in DeepSpeedZeroConfig.model_fields.items() for name in (key, field.alias)}
    assert set(zero) <= known
    parsed = DeepSpeedZeroConfig(**zero)
    assert (parsed.stage, parsed.reduce_bucket_size) == (zero["stage"], zero["reduce_bucket_size"])
    assert set(config["bf16"]) <= set(DeepSpeedBF16Config.model_fields)


def test_deepspeed_batch_numbers_multiply_to_the_global_batch() -> None:
    spec = make_spec(shard=ShardKind.ZERO2)
    config = deepspeed_config(spec)
    per_step = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * spec.world_size
    assert per_step == spec.train.global_batch


def test_the_hash_changes_with_every_part() -> None:
    launch = launch_of("lora-ddp-cpu-torchrun")
    changed = [
        dataclasses.replace(launch, argv=(*launch.argv, "x")),
        dataclasses.replace(launch, env=launch.env | {"OMP_NUM_THREADS": "2"}),
        dataclasses.replace(launch, files=launch.files | {"job.json": launch.files["job.json"] + " "}),
        dataclasses.replace(launch, run_dir="/elsewhere"),
    ]
    assert len({launch.hash, *(other.hash for other in changed)}) == 5
    assert launch.hash == launch_of("lora-ddp-cpu-torchrun").hash


def test_gpus_by_uuid_are_refused_for_deepspeed() -> None:
    spec = make_spec(shard=ShardKind.ZERO2, device=H100, program=Program.DEEPSPEED)
    with pytest.raises(InputError) as caught:
        make_launch(RUNS, spec=spec, host=HostFacts(visible_devices=("GPU-1f", "GPU-2e")))
    assert str(caught.value) == (
        "CUDA_VISIBLE_DEVICES=GPU-1f,GPU-2e names GPUs by UUID, which DeepSpeed's launcher does not take: "
        "name them by number, or use launcher=torchrun"
    )


def test_a_job_that_was_not_planned_is_not_rendered() -> None:
    with pytest.raises(AssertionError):
        render(
            make_spec(),
            make_memory_plan(make_spec(gpus=4)),
            run_id="r",
            runs_dir=RUNS,
            python="python",
            master_port=20_000,
        )


def test_what_steers_libraries_behind_our_back_is_not_inherited() -> None:
    inherited = inherited_environment(
        {
            "PATH": "/bin",
            "WANDB_API_KEY": "secret",
            "RANK": "3",
            "WORLD_SIZE": "8",
            "MASTER_PORT": "29500",
            "ACCELERATE_MIXED_PRECISION": "fp16",
            "FSDP_VERSION": "1",
            "TORCHELASTIC_RUN_ID": "x",
            "FITLAUNCH_RUN": "/another/run",
            "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64",
        }
    )
    assert inherited == {"PATH": "/bin", "WANDB_API_KEY": "secret"}


@pytest.mark.parametrize(
    ("environ", "visible"),
    [({}, None), ({"CUDA_VISIBLE_DEVICES": ""}, ()), ({"CUDA_VISIBLE_DEVICES": "2, 3"}, ("2", "3"))],
)
def test_visible_devices(environ: dict[str, str], visible: tuple[str, ...] | None) -> None:
    facts = read_host_facts(environ)
    assert facts.visible_devices == visible
    assert facts.num_cpus >= 1


@pytest.mark.parametrize(
    ("text", "has_key"),
    [
        ("machine api.wandb.ai login user password 0123", True),
        ("machine example.org login user password 0123", False),
        ("no netrc at all", False),
        (None, False),
    ],
)
def test_a_wandb_login_counts_as_a_key(tmp_path: Path, text: str | None, has_key: bool) -> None:
    if text is not None:
        (tmp_path / ".netrc").write_text(text)
        (tmp_path / ".netrc").chmod(0o600)
    assert read_host_facts({"HOME": str(tmp_path)}).has_wandb_key is has_key


def test_a_key_reaches_no_file() -> None:
    facts = read_host_facts({"WANDB_API_KEY": "0123456789abcdef"})
    launch = make_launch(RUNS, spec=make_spec(tracker=TrackerKind.WANDB), host=facts)
    assert facts.has_wandb_key
    assert "WANDB_MODE" not in launch.env
    assert "0123456789abcdef" not in json.dumps(dataclasses.asdict(launch))
