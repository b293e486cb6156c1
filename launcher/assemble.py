"""Compose conf/ without Hydra: the same files and the same words on the command line make the same configuration.

For answers in an instant: importing Hydra takes longer than a plan. What is missing is what one job does not need:
sweeps, interpolations, and defaults lists in any file but config.yaml. A test holds the result against Hydra's.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from launcher.errors import InputError, Problem
from launcher.options import Options, config_groups, has_type, schema_fields, unknown_key, wrong_value
from launcher.schema import JobConf

GLOBAL = "# @package _global_"
_INT = r"(?:0|[1-9](?:_?\d)*)"
_POINT = rf"(?:{_INT}\.|(?:{_INT})?\.\d(?:_?\d)*)"
INTEGER = re.compile(rf"[+-]?{_INT}")
NUMBER = re.compile(rf"[+-]?(?:{_POINT}|(?:{_INT}|{_POINT})[eE][+-]?\d(?:_?\d)*|[Ii][Nn][Ff]|[Nn][Aa][Nn])")
# What may stand without quotes in Hydra's grammar (1.3, grammar/OverrideLexer.g4), but for escapes.
UNQUOTED = re.compile(r"[A-Za-z0-9_/\-+.$%*@?|: \t]*")
KEY = re.compile(r"[A-Za-z_$][\w$.-]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """One word of the command line: a key and its value as Hydra would read it."""

    key: str
    value: Any
    shown: str


def assemble(words: Sequence[str], conf_dir: Path) -> dict[str, Any]:
    """The configuration that key=value words mean. Raises InputError with every problem found."""
    given = read_words(words, conf_dir)
    options = options_of(conf_dir)
    chosen = {word.key: str(word.value) for word in given if word.key in options.groups}
    conf = _composed(conf_dir, chosen, options)
    for word in given:
        if word.key not in options.groups:
            _set(conf, word.key, _coerced(word.value, options.fields[word.key]))
    return conf


@cache
def options_of(conf_dir: Path) -> Options:
    """What can be set."""
    return Options(groups=config_groups(conf_dir), fields=schema_fields())


def read_words(words: Sequence[str], conf_dir: Path) -> tuple[Given, ...]:
    """The words as keys and values. Raises InputError with every problem found."""
    options = options_of(conf_dir)
    given: list[Given] = []
    problems: list[Problem] = []
    for text in words:
        try:
            word = _read_word(text)
        except ValueError as error:
            problems.append(Problem(field=text, value=None, rule="cannot be read", way_out=str(error)))
            continue
        found = list(_problems(word, given, options))
        problems.extend(found)
        if not found:
            given.append(word)
    if problems:
        raise InputError(problems)
    return tuple(given)


def _problems(word: Given, before: Sequence[Given], options: Options) -> Iterator[Problem]:
    if word.key not in options.groups and word.key not in options.fields:
        yield unknown_key(word.key, word.shown or None, options)
        return
    if word.key in options.groups and any(word.key == other.key for other in before):
        yield Problem(field=word.key, value=word.shown, rule="is given twice", way_out="choose one")
    wrong = wrong_value(word.key, word.value, options)
    if wrong is not None:
        yield wrong


def _read_word(text: str) -> Given:
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError("write key=value")
    if not KEY.fullmatch(key):
        raise ValueError("nothing is added, removed or moved: write key=value")
    return Given(key, read_value(value), value)


def read_value(text: str) -> Any:
    """A value as Hydra reads it: a number, true, false, null, text, text in quotes, or a list of these in brackets."""
    text = text.lstrip(" \t")
    if "${" in text:
        return text  # refused with its own words
    if text.startswith("["):
        return _read_list(text)
    if text.startswith(("'", '"')):
        return _read_quoted(text)
    if "," in text:
        raise ValueError("it has several values: give one")
    if not UNQUOTED.fullmatch(text) or re.search(r":[ \t]+$", text):
        raise ValueError("put the value in quotes, for it has characters that Hydra reads as its own")
    return _read_primitive(text.rstrip(" \t"))


def _read_primitive(text: str) -> Any:
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return float(text)
    words = {"true": True, "false": False, "null": None}
    return words.get(text.lower(), text)


def _read_quoted(text: str) -> str:
    inner = text[1:-1]
    if len(text) < 2 or text[-1] != text[0] or text[0] in inner or "\\" in inner:
        raise ValueError("its quotes do not match, or stand inside it")
    return inner


def _read_list(text: str) -> list[Any]:
    if not text.endswith("]"):
        raise ValueError("its brackets do not match")
    inner = text[1:-1].strip(" \t")
    if any(character in inner for character in "[]{}()"):
        raise ValueError("a list holds plain values")
    return [read_value(part.strip(" \t")) for part in inner.split(",")] if inner else []


def _composed(conf_dir: Path, chosen: Mapping[str, str], options: Options) -> dict[str, Any]:
    """config.yaml's defaults list carried out, in its order, on top of the schema."""
    conf = dataclasses.asdict(JobConf())
    root = _read_file(conf_dir / "config.yaml").values
    for entry in root["defaults"]:
        if entry == "_self_":
            _merge(conf, {key: value for key, value in root.items() if key not in ("defaults", "hydra")})
        elif isinstance(entry, dict):
            ((group, name),) = entry.items()
            if group in options.groups:
                _merge_group(conf, conf_dir / group / f"{chosen.get(group, name)}.yaml")
    return conf


def _merge_group(conf: dict[str, Any], path: Path) -> None:
    file = _read_file(path)
    if "defaults" in file.values:
        rule = "has a defaults list, which only Hydra reads"
        raise InputError(
            [Problem(field=path.parent.name, value=path.stem, rule=rule, way_out="use launch.py mode=plan")]
        )
    _merge(conf, file.values if file.is_global else {path.parent.name: file.values})


def _merge(conf: dict[str, Any], values: Mapping[str, Any], schema: type = JobConf, place: str = "") -> None:
    """Lay values over a configuration, each converted to the type that the schema gives it."""
    hints = _hints(schema)
    for key, value in values.items():
        field = f"{place}{key}"
        if key not in hints:
            raise InputError(
                [Problem(field=field, value=value, rule="is not an option", way_out="see launcher/schema.py")]
            )
        if dataclasses.is_dataclass(hints[key]):
            assert isinstance(hints[key], type)
            _merge(conf[key], value, hints[key], f"{field}.")
        else:
            conf[key] = _coerced(value, hints[key])


@cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _coerced(value: Any, hint: Any) -> Any:
    """A value in the field's type where Hydra would convert it: a whole number to a float, anything to text."""
    parts = set(get_args(hint) or (hint,)) - {type(None)}
    if isinstance(value, list | dict):
        return copy.deepcopy(value)  # files are read once, and their values stay as they were
    if value is None or hint is Any:
        return value
    if parts == {float} and has_type(value, hint):
        return float(value)
    return str(value) if parts == {str} else value


def _wrong(field: str, value: object, rule: str, way_out: str) -> InputError:
    return InputError([Problem(field=field, value=value, rule=rule, way_out=way_out)])


def _set(conf: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        conf = conf[part]
    conf[last] = value


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as OmegaConf reads it: 1e-4 is a number, and no text is a date."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?\d+(?:_\d+)*\.[0-9_]*(?:[eE][-+]?\d+)?$|[-+]?\d+(?:_\d+)*[eE][-+]?\d+$"
        r"|\.\d+(?:_\d+)*(?:[eE][-+]\d+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file of conf/: what it sets, and whether it sets it at the root or under its group's name."""

    values: Mapping[str, Any]
    is_global: bool


@cache
def _read_file(path: Path) -> File:
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=Loader)  # noqa: S506
    except (OSError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())
        raise InputError([Problem(field=str(path), value=None, rule=f"cannot be read: {words}")]) from None
    return File(values or {}, text.startswith(GLOBAL))
