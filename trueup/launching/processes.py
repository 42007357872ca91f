"""The processes that train a stage together. Each runs the whole stage; the first of them alone writes its folder.

What is no training, such as answering a few held-out prompts, each process does by itself, with the same random numbers
and the same result. So none waits for another between the steps, and a stage reads as if it ran alone.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CAMPAIGN = "TRUEUP_CAMPAIGN"
"""Of the environment: the file with the campaign, which a stage by itself reads from standard input."""
ON_CPU = "ACCELERATE_USE_CPU"
"""Of the environment: `true` where processes train on the CPU, whatever else the machine has."""
_PATIENCE = timedelta(days=1)
"""How long one may wait for another. One that dies ends them all at once, by what started them."""


def count() -> int:
    """Number of processes that train together, from `accelerate launch` or `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def agreed(value: Callable[[], T]) -> T:
    """What the first process computes, in each of them. All come here, and wait for it."""
    if count() == 1:
        return value()
    from accelerate.utils import broadcast_object_list

    _join()
    return broadcast_object_list([value() if rank() == 0 else None])[0]


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        _join().wait_for_everyone()


def _join() -> Any:
    from accelerate import PartialState

    return PartialState(cpu=os.environ.get(ON_CPU) == "true", timeout=_PATIENCE)


def folder_for(home: Path, resumed: bool) -> Path:
    """Where a process writes: the first one into the stage's folder `home`, each of the others into one of its own,
    which is removed when it ends. If the stage goes on where it was interrupted, that begins as a copy, but for
    checkpoints, which are shared."""
    if rank() == 0:
        wait()
        return home
    folder = Path(tempfile.mkdtemp(prefix=f"trueup-process-{rank()}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if resumed:
        shutil.copytree(home, folder, ignore=shutil.ignore_patterns("checkpoint-*"), dirs_exist_ok=True)
    wait()
    return folder
