"""From the name of a model, as people write it, to the widths of its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from launcher.paths import conf_dir

OWN = Path(__file__).with_name("models.yaml")
# What a name has beside family and size: how it was tuned, which release, in which format.
DECORATION = re.compile(r"-(instruct|chat|base|it|hf|meta|\d{4}|v\d+(\.\d+)*|intermediate-step.*)(?=-|$)")


def find_config(model: str) -> Mapping[str, Any] | None:
    """The config of a model given as a hub id, a path or a plain name; None where nobody wrote it down."""
    name = last_word(model)
    return _own().get(plain(name, keep_release=True)) or _listed().get(plain(name)) or _own().get(plain(name))


def last_word(model: str) -> str:
    """'checkpoints/meta-llama/Llama-3.2-1B' -> 'llama-3.2-1b'."""
    return model.strip().rstrip("/").rsplit("/", 1)[-1].split(" ")[0].lower()


def plain(name: str, *, keep_release: bool = False) -> str:
    """A name without its decoration: 'meta-llama-3-8b-instruct' and 'llama3-8b' -> 'llama3-8b'."""
    name = name.removeprefix("meta-")
    if not keep_release:
        name = DECORATION.sub("", name)
    return re.sub(r"^([a-z]+)-(\d)", r"\1\2", name)


@cache
def _own() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(OWN.read_text(encoding="utf-8"))
    return {plain(name, keep_release=True): config for name, config in found.items()}


@cache
def _listed() -> dict[str, dict[str, Any]]:
    """Every model under conf/model, by its own name and by its hub id's."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = values.get("config")
        if not isinstance(config, dict) or "hidden_size" not in config:
            continue
        found[plain(values["name"].lower())] = config
        if values.get("hub_id"):
            found.setdefault(plain(last_word(values["hub_id"])), config)
    return found
