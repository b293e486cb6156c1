"""What a value may look like that reaches a script, a scheduler's options, ssh or another program's environment.

An allow-list, for quoting is not enough: sbatch reads #SBATCH lines with a parser of its own, which takes what shlex
has quoted for something else, and ssh hands its words to a shell on the other side. Whatever is not listed here is
refused with its field, before anything is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A kind of value: a pattern for all of it, and the same in words."""

    pattern: re.Pattern[str]
    words: str

    def matches(self, value: str) -> bool:
        """Whether the value has the form, from its first character to its last."""
        return self.pattern.fullmatch(value) is not None


def _form(pattern: str, words: str) -> Form:
    return Form(pattern=re.compile(pattern, re.ASCII), words=words)


NAME = _form(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", "a name: letters, digits and _.@+- (no - or . at its beginning)")
NAMES = _form(
    r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*(,[A-Za-z0-9_][A-Za-z0-9_.@+-]*)*",
    "names with commas between them: letters, digits and _.@+-",
)
CONSTRAINT = _form(r"[A-Za-z0-9_(\[][A-Za-z0-9_.,:&|*()\[\]-]*", "features of nodes, as h100&ib or [rack1|rack2]")
NODES = _form(
    r"[A-Za-z0-9]([A-Za-z0-9._-]|\[\d+(-\d+)?(,\d+(-\d+)?)*\])*", "a node, or several as node[1-4,7]: one a list entry"
)
INTERFACES = _form(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}(,[A-Za-z0-9_][A-Za-z0-9_.-]{0,14})*",
    "a network interface, as ib0, or several with commas between them",
)
VARIABLE = _form(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable, without its value")
PATH = _form(
    r"/[A-Za-z0-9_.,@+=~/-]*", "an absolute path of letters, digits and _.,@+=~/- (no space: sbatch and ssh misread it)"
)
CONTAINER = _form(
    r"[A-Za-z0-9_./][A-Za-z0-9_./:@#+~=-]*", "an image: a path or as registry#name:tag, without spaces or quotes"
)
MOUNT = _form(
    r"/[A-Za-z0-9_.@+=~/-]*(:/[A-Za-z0-9_.@+=~/-]*(:[a-z+]+)?)?",
    "a mount, as /data or /data:/data:ro: one a list entry",
)
SHELL_LINE = _form(r"[^\x00-\x08\x0a-\x1f\x7f]+", "one line of shell")
JOB_NAME = _form(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name: letters, digits and ._-")

_SECRET_WORDS = (
    "ACCESSKEY", "APIKEY", "AUTH", "CREDENTIAL", "CREDENTIALS", "CREDS", "KEY", "KEYS", "PASS", "PASSPHRASE",
    "PASSWD", "PASSWORD", "PAT", "PRIVATE", "PWD", "SECRET", "SECRETS", "TOKEN", "TOKENS",
)  # fmt: skip
_NOT_SECRET = frozenset({"PWD", "OLDPWD", "SSH_AUTH_SOCK", "TOKENIZERS_PARALLELISM"})


def looks_secret(variable: str) -> bool:
    """Whether a variable's name says that its value is a secret: WANDB_API_KEY, HF_TOKEN, MY_PASSWORD."""
    if variable in _NOT_SECRET:
        return False
    words = re.split(r"[_\d]+", variable.upper())
    return any(word in _SECRET_WORDS or word.endswith(("PASSWORD", "SECRET", "TOKEN", "APIKEY")) for word in words)


def secrets_set_by(shell_line: str) -> tuple[str, ...]:
    """Names of secrets to which a line of shell gives a value."""
    found = re.findall(r"(?:^|[\s;&|(])([A-Za-z_][A-Za-z0-9_]*)=[^\s;]", shell_line)
    return tuple(name for name in found if looks_secret(name))
