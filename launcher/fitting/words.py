"""The words of a question, composed as launch.py composes them; more words make another job of the same question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.assemble import assemble, read_words
from launcher.compose import make_spec
from launcher.errors import InputError, Problem
from launcher.host import Host
from launcher.spec import JobSpec, Mode

WITHOUT_EFFECT = ("mode", "fit", "runs_dir", "plan.by", "plan.explain", "plan.format")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What was typed, where conf/ is, and the host that it is asked on."""

    words: tuple[str, ...]
    conf_dir: Path
    host: Host
    keys: frozenset[str]

    def spec(self, *more: str) -> JobSpec:
        """The job that the words mean, with more words. Raises InputError."""
        return make_spec(assemble([f"mode={Mode.PLAN}", *self.words, *more], self.conf_dir), self.host)


def question(words: Sequence[str], conf_dir: Path, host: Host) -> Question:
    """Read a question. Raises InputError for words that are wrong, or mean nothing in a question."""
    keys = frozenset(word.key for word in read_words(words, conf_dir))
    idle = [key for key in WITHOUT_EFFECT if key in keys]
    if idle:
        rule, way_out = "has no effect on what fits", "leave it out"
        raise InputError([Problem(field=key, value=None, rule=rule, way_out=way_out) for key in idle])
    return Question(words=tuple(words), conf_dir=conf_dir, host=host, keys=keys)
