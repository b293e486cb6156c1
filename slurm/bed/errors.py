"""The one error of a bed."""

from __future__ import annotations


class BedError(Exception):
    """A bed cannot do what was asked. Its text says what is missing or wrong, and the way out."""

    exit_code = 2
