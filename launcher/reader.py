"""Read values of a composed configuration, and collect what is wrong with them instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from launcher.errors import Problem

Word = TypeVar("Word", bound=StrEnum)


class Reader:
    """Reads values of the composed configuration and collects what is wrong with them."""

    def __init__(self, conf: Mapping[str, Any]) -> None:
        self.conf = conf
        self.problems: list[Problem] = []

    def get(self, field: str) -> Any:
        """The raw value of a dotted field."""
        value: Any = self.conf
        for part in field.split("."):
            value = value[part]
        return value

    def report(self, field: str, rule: str, way_out: str = "") -> None:
        """Remember a problem with a field."""
        value = self.get(field)
        self.problems.append(Problem(field=field, value="null" if value is None else value, rule=rule, way_out=way_out))

    def choice(self, field: str, kind: type[Word]) -> Word:
        """One of an enum's words; its first one stands in for a wrong word."""
        value = self.get(field)
        try:
            return kind(value)
        except ValueError:
            self.report(field, "is not known", f"choose from {', '.join(kind)}")
            return next(iter(kind))

    def optional_choice(self, field: str, kind: type[Word]) -> Word | None:
        """As `choice`; null stays None."""
        return None if self.get(field) is None else self.choice(field, kind)

    def at_least(self, field: str, minimum: float, *, exclusive: bool = False) -> Any:
        """A number with a lower bound; the bound (or one above it) stands in for a wrong one. null stays None."""
        value = self.get(field)
        if value is None or value > minimum or (value == minimum and not exclusive):
            return value
        self.report(field, f"must be {'more than' if exclusive else 'at least'} {minimum:g}")
        return minimum + 1 if exclusive else minimum

    def fraction(self, field: str) -> float | None:
        """A number in [0, 1)."""
        value: float | None = self.get(field)
        if value is None or 0 <= value < 1:
            return value
        self.report(field, "must be at least 0 and below 1")
        return 0.0
