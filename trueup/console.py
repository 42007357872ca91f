"""Messages of a stage at work.

A stage calls `say` and `progress`. In a test or a notebook the lines are printed. Under `trueup run` the stage is a
process of its own, and both become JSON events on its standard output, which the parent draws. Other output, such as
that of libraries, goes to the stage's log file.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypedDict

from trueup.provenance.masking import without_passwords


class Event(TypedDict, total=False):
    """What a stage tells its parent, a line of JSON each: it says something, where it is, or what it ends with."""

    say: str
    progress: tuple[int, int]
    """Steps done, and all."""
    measures: dict[str, float]
    error: str
    kind: str
    """Class of the exception."""


_events: IO[str] | None = None
_muted = False
_errors_alone = False


def printable(text: str) -> str:
    """Text that is safe to print. Control characters, which could move the cursor, set the title or hide text, and
    halves of surrogate pairs, which cannot be printed, become visible escapes. Passwords of URLs are hidden. Line ends
    and tabs stay."""
    return without_passwords(_CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text))


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def muted() -> Iterator[None]:
    """Print nothing for a while, during a trial."""
    global _muted
    before, _muted = _muted, True
    try:
        yield
    finally:
        _muted = before


def say(text: str) -> None:
    """Print a line for the user: a derived number, or a choice and its reason."""
    text = printable(text)
    if _muted:
        return
    if _events is None:
        sys.stdout.write(f"{text}\n")  # in one piece, since several threads of a server may print
        sys.stdout.flush()
    else:
        _emit({"say": text})


def is_unread() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more, as after `| head`."""
    pipes = select.poll()
    for descriptor in (1, 2):
        pipes.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def silence() -> None:
    """Let all further output go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def progress(step: int, total: int, **measures: float) -> None:
    """Report the stage's progress. `measures` appear beside the bar: loss, tokens_per_s."""
    if _events is not None:
        _emit({"progress": (step, total), "measures": measures})


def report_error(text: str, kind: str) -> None:
    """Report one of our own exceptions, which ends the stage; `kind` is its class name."""
    text = printable(text)
    if _events is None:
        print(text, file=sys.stderr)
    else:
        _emit({"error": text, "kind": kind})


def _emit(event: Event) -> None:
    assert _events is not None
    if _errors_alone and "error" not in event:
        return
    _events.write(json.dumps(event) + "\n")
    _events.flush()


def become_child(errors_alone: bool = False) -> None:
    """Turn standard output into the event channel. All other output goes to standard error, which is the log.

    errors_alone  another process does the same, and tells the rest
    """
    global _errors_alone
    _errors_alone = errors_alone
    become_launcher()
    os.dup2(2, 1)


def become_launcher(clean: Callable[[], None] | None = None) -> None:
    """The same in a process whose children have the event channel as their standard output.

    clean  what to do before the process ends with its parent
    """
    global _events
    _events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    exit_with_parent(clean)


def exit_with_parent(clean: Callable[[], None] | None = None) -> None:
    """End this process when its parent is gone. Otherwise it would hold the run's lock and work for nobody."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        if clean:
            clean()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
