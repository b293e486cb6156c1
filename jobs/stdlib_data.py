"""The embedded instruction set: questions about Python, answered by the standard library's own documentation.

Real text that is on every machine: module, class, function and method docstrings of the modules listed here, and the
language reference that help() shows (pydoc_data.topics). The rows depend on the Python version alone.

    python -m jobs.stdlib_data FILE      write them
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

from jobs.cache import build_once, cache_dir

# Part of the file's name: raise it when the same Python shall give other rows.
FORMAT = 1
BUILD_TIMEOUT_S = 120.0
MIN_ANSWER_CHARACTERS = 25
MAX_ANSWER_CHARACTERS = 320

# Modules whose import does nothing but define names. One that this Python was built without is passed over.
_MODULES = """
    abc argparse array ast base64 bisect bz2 calendar collections collections.abc concurrent.futures configparser
    contextlib contextvars copy csv dataclasses datetime decimal difflib email.message enum errno filecmp fnmatch
    fractions functools getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser http.client http.server
    io ipaddress itertools json keyword linecache locale logging lzma math mimetypes numbers operator os.path pathlib
    pickle platform pprint queue random re sched secrets selectors shelve shlex shutil signal socket sqlite3 statistics
    string struct subprocess sys tarfile tempfile textwrap threading time timeit traceback types typing unicodedata
    unittest urllib.parse urllib.request uuid warnings weakref xml.etree.ElementTree zipfile zlib
"""
# Classes whose methods are asked about; of other classes only the class itself is.
_CLASSES_WITH_METHODS = """
    argparse.ArgumentParser collections.Counter collections.OrderedDict collections.deque configparser.ConfigParser
    datetime.date datetime.datetime fractions.Fraction logging.Logger pathlib.Path pathlib.PurePath queue.Queue
    string.Formatter subprocess.Popen threading.Barrier threading.Condition threading.Event threading.Thread
    zipfile.ZipFile
"""
_BUILTIN_TYPES = (
    bool,
    bytearray,
    bytes,
    complex,
    dict,
    float,
    frozenset,
    int,
    list,
    memoryview,
    range,
    set,
    str,
    tuple,
)

# Where the members of a module say they are from, if it is neither the module nor its C helper.
_OTHER_HOMES = {"os.path": ("posixpath", "ntpath", "genericpath")}

# Sentences that lead to text which is not in the answer.
_POINTS_ELSEWHERE = re.compile(r"\b(following|below|here are|syntax is|see section|Arguments:)", re.IGNORECASE)

_WORDINGS = {
    "module": (
        "What is the Python module `{name}` for?",
        "Describe Python's `{name}` module.",
        "What does the standard library's `{name}` module provide?",
    ),
    "class": (
        "What is `{name}` in Python?",
        "Describe the Python class `{name}`.",
        "What is the class `{name}` used for?",
    ),
    "function": (
        "What does `{name}` do in Python?",
        "Explain the Python function `{name}`.",
        "What is `{name}` used for?",
    ),
    "method": (
        "What does the Python method `{name}` do?",
        "Explain the method `{name}` in Python.",
        "What happens when I call `{name}` in Python?",
    ),
    "topic": (
        "Explain {name} in Python.",
        "What does Python's language reference say about {name}?",
        "Tell me about {name} in Python.",
    ),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something documented: its kind (a key of the wordings), its name as a person writes it, its documentation."""

    kind: str
    name: str
    documentation: str


def data_file() -> Path:
    """The instruction set of this Python as alpaca JSONL, written into the cache unless it is there."""
    version = ".".join(map(str, sys.version_info[:3]))
    return build_once(cache_dir() / "data" / f"stdlib-{version}-{FORMAT}.jsonl", build)


def build(path: Path) -> None:
    """Write the instruction set from an interpreter of its own: libraries such as torch alter what they import."""
    command = (sys.executable, "-P", "-m", "jobs.stdlib_data", str(path))
    subprocess.run(command, check=True, timeout=BUILD_TIMEOUT_S)


def write_rows(path: Path) -> None:
    """Write the instruction set, as this process sees the library, as alpaca JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows()), encoding="utf-8")


def make_rows() -> list[dict[str, str]]:
    """Every question with its answer, sorted by question. No question and no answer comes twice."""
    rows: dict[str, dict[str, str]] = {}
    for subject in _subjects():
        answer = first_sentences(subject.documentation)
        if answer and answer not in rows:
            rows[answer] = {"instruction": _question(subject), "input": "", "output": answer}
    by_question = {row["instruction"]: row for row in rows.values()}
    return [by_question[question] for question in sorted(by_question)]


def first_sentences(documentation: str) -> str:
    """The whole sentences at the beginning of a text that fit the longest answer; '' where there are none."""
    answer = ""
    for sentence in _sentences(_first_paragraph(documentation)):
        longer = f"{answer} {sentence}".lstrip()
        whole = sentence.endswith((".", "!", "?")) and not _POINTS_ELSEWHERE.search(sentence)
        if len(longer) > MAX_ANSWER_CHARACTERS or not whole:
            break
        answer = longer
    return answer if len(answer) >= MIN_ANSWER_CHARACTERS else ""


def _sentences(paragraph: str) -> list[str]:
    """Split after a full stop that a capital follows, unless it is an abbreviation's."""
    return re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)\s+(?=[A-Z`'\"(])", paragraph)


def _first_paragraph(documentation: str) -> str:
    """The first paragraph of prose, in one line: signatures, headings, examples and lists are passed over."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(documentation)):
        text = re.sub(r"(?<=\w-) (?=\w)", "", " ".join(block.split()))  # words broken over two lines
        if text[:1].isupper() and not re.search(r">>>|\*\*\*|===|---|->|::|^[-*] |\\[nt]|\|", text):
            return text
    return ""


def _question(subject: Subject) -> str:
    wordings = _WORDINGS[subject.kind]
    return wordings[zlib.crc32(subject.name.encode()) % len(wordings)].format(name=subject.name)


def _subjects() -> Iterator[Subject]:
    for name in _MODULES.split():
        module = _import(name)
        if module is not None:
            yield Subject("module", name, module.__doc__ or "")
            yield from _members(module, name)
    for kind in _BUILTIN_TYPES:
        yield Subject("class", kind.__name__, kind.__doc__ or "")
        yield from _methods(kind, kind.__name__)
    yield from _topics()


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _members(module: ModuleType, module_name: str) -> Iterator[Subject]:
    for name in sorted(getattr(module, "__all__", None) or vars(module)):
        member = getattr(module, name, None)
        if name.startswith("_") or not _defined_in(member, module_name):
            continue
        if inspect.isclass(member):
            yield Subject("class", f"{module_name}.{name}", member.__dict__.get("__doc__") or "")
            if f"{module_name}.{name}" in _CLASSES_WITH_METHODS.split():
                yield from _methods(member, f"{module_name}.{name}")
        elif inspect.isroutine(member):
            yield Subject("function", f"{module_name}.{name}", member.__doc__ or "")


def _defined_in(member: Any, module_name: str) -> bool:
    """Whether a member is the module's own, or its C helper's (_heapq for heapq), and not merely imported by it."""
    home = getattr(member, "__module__", None)
    return home in (module_name, f"_{module_name}", *_OTHER_HOMES.get(module_name, ()))


def _methods(owner: type, owner_name: str) -> Iterator[Subject]:
    for name, method in sorted(vars(owner).items()):
        function: Callable[..., Any] | Any = getattr(method, "__func__", method)
        if not name.startswith("_") and inspect.isroutine(function):
            yield Subject("method", f"{owner_name}.{name}", function.__doc__ or "")


def _topics() -> Iterator[Subject]:
    for text in topics.values():
        title, _, body = text.partition("\n")
        if "—" not in title:  # those head the library's chapters, not the language's
            # "The del statement deletes its targets:" and then its grammar: the sentence stands without it.
            yield Subject("topic", _topic_name(title), body.replace(":\n\n", ".\n\n"))


def _topic_name(title: str) -> str:
    """'The "del" statement' as a person says it inside a sentence: the `del` statement."""
    words = title.strip().split()
    return " ".join(f"`{word[1:-1]}`" if word.startswith('"') else word.lower() for word in words)


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
