"""Every error that a user can cause.

    TrueupError            one boundary in the CLI turns these into a message and exit code 2
    |-- ConfigError        the campaign file: all its problems at once
    |-- DataError          an input file: its path, line, what was found
    |-- RunError           a run directory: a stage missing, unfinished, locked or changed
    `-- ModelError         a model or tokenizer that cannot be loaded or used as asked
    LabelsWanted           not an error: the campaign waits for people (exit code 3)

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

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


class LabelsWanted(TrueupError):
    """The label stage waits for people. Not a failure: the CLI prints the text and exits with 3."""
