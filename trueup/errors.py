"""Every error that a user can cause.

    TrueupError            one boundary in the CLI turns these into a message and exit code 2
    |-- ConfigError        the campaign file: all its problems at once
    |-- DataError          an input file: its path, line, and what is wrong
    |-- RunError           a run directory: a stage missing, unfinished, locked or changed
    `-- ModelError         a model or tokenizer that cannot be loaded or used as the config asks
    LabelsPending          not an error: the campaign waits for people (exit code 3)

    StageFailed            a stage's process ended with one of these; the text is the stage's

Any other exception is a bug and keeps its traceback; StageCrashed carries that of a stage's process.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TrueupError(Exception):
    """A problem that the user can act on; the text says what was found and what to do."""


class ConfigError(TrueupError):
    """One or more problems in a campaign file. `problems` are lines of the form `key: message`."""

    def __init__(self, source: str | Path, problems: list[str]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))


class DataError(TrueupError):
    """A file with content that cannot be read."""


class RunError(TrueupError):
    """A run directory that is not in the state that a command needs."""


class ModelError(TrueupError):
    """A model or tokenizer that cannot be loaded, or cannot do what the config asks."""


class StageFailed(TrueupError):
    """A stage's process ended with one of our own exceptions."""


class LabelsPending(TrueupError):
    """The label stage waits for people. Not a failure: the CLI prints the text and exits with 3."""


class StageCrashed(Exception):
    """A stage's process ended with a bug: the text is its own traceback, which the CLI shows whole, and a `sentence`
    that says what happened."""

    def __init__(self, traceback: str, sentence: str):
        self.sentence = sentence
        super().__init__(f"{traceback}\n\n{sentence}")


def did_you_mean(word: str, choices: list[str]) -> str:
    """`; did you mean X?` for the nearest choice, or else the list of choices."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(choices))}" if choices else ""


@contextmanager
def writing(to: Path) -> Iterator[None]:
    """What the system says against a place that the user named for a result, in one sentence."""
    try:
        yield
    except OSError as error:
        raise TrueupError(f"{to}: cannot be written ({error.strerror})") from None


def require_new(to: Path | None) -> None:
    """A TrueupError if a place that the user named for a result is taken, found out before anything is done."""
    if to is not None and to.exists():
        raise TrueupError(f"{to}: is there already; nothing was done. Give another name, or move it away")


_ENVIRONMENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
}
_FULL = "the disk, or this user's quota on it, is full"
_AS_TEXT = {
    "No space left on device": _FULL,
    "File too large (os error": _FULL,
    "database or disk is full": _FULL,
    # torch.save's message about a write that was cut short.
    "iostream error": _FULL,
    "unexpected pos ": _FULL,
    "Read-only file system": "the medium cannot be written",
    "attempt to write a readonly database": "the label store is on a medium that cannot be written",
    "disk I/O error": "the disk cannot be read or written",
}
"""Messages of libraries that wrap the system's error in one of their own, with our sentence for each."""


def of_the_machine(error: BaseException | None) -> str | None:
    """One sentence, if the disk, its permissions or limits caused an exception; None if it is a bug.

    Causes are searched too, since a library may wrap the system's error.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}. No finished stage is lost; fix the cause, and the same command continues"
        if sentence := next((text for fragment, text in _AS_TEXT.items() if fragment in str(error)), None):
            return f"{sentence}. No finished stage is lost; fix the cause, and the same command continues"
        error = error.__cause__ or error.__context__
    return None
