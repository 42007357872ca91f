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
