"""Every error that a user can cause.

    TrueupError            one boundary in the CLI turns these into a message and exit code 2
    |-- ConfigError        the campaign file: all its problems at once
    |-- DataError          an input file: its path, line, what was found
    |-- RunError           a run directory: a stage missing, unfinished, locked or changed
    `-- ModelError         a model or tokenizer that cannot be loaded or used as asked
    LabelsWanted           not an error: the campaign waits for people (exit code 3)

    StageFailed            a stage's process ended with one of these; the text is the stage's

Anything else that is raised is a bug and keeps its traceback; StageCrashed carries that of a stage's process.
"""

from __future__ import annotations

import difflib
import errno
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
    """A file that cannot be read as what it should be."""


class RunError(TrueupError):
    """A run directory that is not in the state which a command needs."""


class ModelError(TrueupError):
    """A model or tokenizer that cannot be loaded, or that cannot do what the config asks of it."""


class StageFailed(TrueupError):
    """A stage's process ended with one of our own exceptions."""


class LabelsWanted(TrueupError):
    """The label stage waits for people. Not a failure: the CLI prints the text and exits with 3."""


class StageCrashed(Exception):
    """A stage's process ended with a bug: the text is its own traceback, which the CLI shows whole."""


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean X?` for the nearest known word, or what there is to choose from."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}" if known else ""


_ENVIRONMENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
}
_FULL = "the disk, or the room that this user has on it, is full"
_AS_TEXT = {
    "No space left on device": _FULL,
    "File too large (os error": _FULL,
    "database or disk is full": _FULL,
    # What torch.save says of a write that was cut short.
    "iostream error": _FULL,
    "unexpected pos ": _FULL,
    "Read-only file system": "the medium cannot be written",
    "attempt to write a readonly database": "the label store is on a medium that cannot be written",
    "disk I/O error": "the disk cannot be read or written",
}
"""How libraries tell of it that wrap the system's error in one of their own."""


def of_the_machine(error: BaseException | None) -> str | None:
    """One sentence, where an exception comes of the disk, its rights or limits rather than of a bug; else None.

    Causes are looked through too: a library may wrap what the system said.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}. Nothing that was finished is lost; mend it, and the same command goes on"
        if found := next((said for text, said in _AS_TEXT.items() if text in str(error)), None):
            return f"{found}. Nothing that was finished is lost; mend it, and the same command goes on"
        error = error.__cause__ or error.__context__
    return None
