"""What can be set: the groups of conf/ and the keys of the schema, and what is wrong with a key or a value.

Everything that reads a command line asks here, so that a wrong word is met with the same answer everywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from launcher.errors import Problem
from launcher.schema import JobConf


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What can be set: the names in each group of conf/, and the type of each dotted key."""

    groups: dict[str, tuple[str, ...]]
    fields: dict[str, Any]


def config_groups(conf_dir: Path) -> dict[str, tuple[str, ...]]:
    """The names that each group of conf/ offers."""
    return {
        folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml")))
        for folder in sorted(conf_dir.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def schema_fields(schema: type = JobConf, prefix: str = "") -> dict[str, Any]:
    """Every key that can be set, dotted, with its type."""
    fields: dict[str, Any] = {}
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            fields |= schema_fields(hint, f"{prefix}{name}.")
        else:
            fields[prefix + name] = hint
    # What a device or a model is comes from its file; only these of theirs are options.
    return {
        key: hint
        for key, hint in fields.items()
        if (not key.startswith(("device.", "model.")) and not key.endswith(".name") and key != "cluster.kind")
        or key in ("model.path", "model.revision")
    }


def nearest(word: str, names: Iterable[str]) -> str:
    """'Did you mean ...' where there is a near name, else all the names."""
    names = list(names)
    close = difflib.get_close_matches(word, names, n=1) or difflib.get_close_matches(
        word, [name.rpartition(".")[2] for name in names], n=1
    )
    if close:
        full = next(name for name in names if name == close[0] or name.endswith(f".{close[0]}"))
        return f"did you mean {full}?"
    return f"choose from {', '.join(names)}"


def _type_name(hint: Any) -> str:
    if get_origin(hint) is list:
        return "a list, as [a,b]"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    parts = get_args(hint) or (hint,)
    if {int, float, bool} & set(parts):
        names[str] = "auto"
    return " or ".join(names[part] for part in parts if not (part is int and float in parts))


def has_type(value: object, hint: Any) -> bool:
    """Whether a value may stand in a field of this type."""
    parts = set(get_args(hint) or (hint,))
    if get_origin(hint) is list:
        return isinstance(value, list) and all(has_type(part, *parts) for part in value)
    if hint is Any or value is None:
        return hint is Any or types.NoneType in parts
    if parts & {int, float, bool}:
        allowed = parts - {str} | ({int} if float in parts else set())
        return type(value) in allowed or (str in parts and value == "auto")
    # A number is also text: `data.path=2024` names a file.
    return isinstance(value, str | int | float)


def unknown_key(key: str, shown: str | None, options: Options) -> Problem:
    """What is wrong with a key that is none, and the one that may have been meant."""
    prefix = key.rpartition(".")[0]
    if key.startswith("model.config"):
        way_out = "the architecture is the model's own: use model=path model.path=DIR"
    else:
        siblings = [name for name in options.fields if name.rpartition(".")[0] == prefix]
        way_out = nearest(key, [*siblings, *([] if prefix and siblings else options.groups)])
    return Problem(field=key, value=shown, rule="is not an option", way_out=way_out)


def wrong_value(key: str, value: Any, options: Options) -> Problem | None:
    """What is wrong with the value of a known key, if anything."""
    name = "null" if value is None else str(value)
    if isinstance(value, str) and "${" in value:
        rule = "is an interpolation; values are taken as they stand"
        return Problem(field=key, value=name, rule=rule, way_out="write the value itself")
    if key in options.groups:
        if value is None or name not in options.groups[key]:
            return Problem(field=key, value=name, rule="is not known", way_out=nearest(name, options.groups[key]))
    elif not has_type(value, options.fields[key]):
        return Problem(field=key, value=name, rule=f"must be {_type_name(options.fields[key])}")
    return None
