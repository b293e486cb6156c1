"""Read the command line before Hydra does, so that every problem is found at once and said in our words.

Hydra reports one composition error at a time, advises `+key` for a misspelt key, and lets `+key` through.
Here every override is held against the schema and the files of conf/, and all problems come back together.
What passes here composes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString, Transformer
from hydra.errors import HydraException

from launcher.errors import Problem
from launcher.options import Options, config_groups, schema_fields, unknown_key, wrong_value


def _values(override: Override) -> Iterator[Any]:
    """The values an override takes: one, or each element of a sweep."""
    if override.is_discrete_sweep():
        values: Iterator[Any] = override.sweep_iterator(transformer=Transformer.identity)
    else:
        values = iter(() if override.is_sweep_override() else (override.value(),))
    return (value.text if isinstance(value, QuotedString) else value for value in values)


def _check_one(text: str, options: Options, multirun: bool) -> Iterator[Problem]:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        yield Problem(field=text, value=None, rule="cannot be read", way_out=f"write key=value ({reason})")
        return
    key, shown = override.key_or_group, text.partition("=")[2] or None
    if key.startswith(("hydra.", "hydra/")):
        return
    if key not in options.groups and key not in options.fields:
        yield unknown_key(key, shown, options)
    elif override.type is not OverrideType.CHANGE or override.package is not None:
        rule = "can only be set: nothing is added, removed or moved"
        yield Problem(field=text, value=None, rule=rule, way_out=f"write {key}=VALUE")
    elif override.is_sweep_override() and not multirun:
        yield Problem(field=key, value=shown, rule="has several values", way_out="add -m to run every one of them")
    else:
        yield from filter(None, (wrong_value(key, value, options) for value in _values(override)))


def check_overrides(overrides: Sequence[str], conf_dir: Path, *, multirun: bool) -> tuple[Problem, ...]:
    """Every problem of the command line's overrides, in their order."""
    options = Options(groups=config_groups(conf_dir), fields=schema_fields())
    return tuple(problem for text in overrides for problem in _check_one(text, options, multirun))
