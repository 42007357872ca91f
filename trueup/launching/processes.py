"""The processes that train a stage together. Each runs the whole stage; the first of them alone writes its folder.

What is no training, such as answering a few held-out prompts, each process does by itself, with the same random numbers
and the same result. So none waits for another between the steps, and a stage reads as if it ran alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SCRATCH = "TRUEUP_SCRATCH"
"""Of the environment: a folder of what started the processes, which removes it when they have ended."""
CAMPAIGN = "campaign.json"
"""In that folder: the campaign, which a stage by itself reads from standard input."""
READ_AGAIN = ("metrics.jsonl", "samples.jsonl", "steps", "judge/metrics.jsonl")
"""What a stage that goes on reads of what it wrote."""
ON_CPU = "ACCELERATE_USE_CPU"
"""Of the environment: `true` where processes train on the CPU, whatever else the machine has."""
_PATIENCE = timedelta(hours=6)
"""How long one may wait for another, which may draw and judge many answers. One that dies ends them all at once, by
what started them."""


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


def least(value: float) -> float:
    """The least of what the processes come with."""
    if count() == 1:
        return value
    from accelerate.utils import gather_object

    _join()
    return min(gather_object([value]))


def gather_rows(gather: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """accelerate's `gather` for tensors of which processes have unlike numbers of rows, as in a last step that is not
    full: its own expects equal shapes, and stops or hands out garbage."""

    def gathered(tensor: Any) -> Any:
        if not getattr(tensor, "ndim", 0):
            return gather(tensor)
        counts = gather(tensor.new_tensor([len(tensor)], dtype=int)).tolist()
        most = max(counts)
        if min(counts) == most:
            return gather(tensor)
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        every = gather(padded)
        there = [row for n, rows in enumerate(counts) for row in range(n * most, n * most + rows)]
        return every[there]

    return gathered


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        _join().wait_for_everyone()


def _join() -> Any:
    from accelerate import PartialState

    return PartialState(cpu=os.environ.get(ON_CPU) == "true", timeout=_PATIENCE)


def folder_for(home: Path, resumed: bool) -> Path:
    """Where a process writes: the first one into the stage's folder `home`, each of the others into one of its own. If
    the stage goes on where it was interrupted, that begins with what the stage reads of itself, but for checkpoints and
    other large files, which are shared."""
    if rank() == 0:
        wait()
        return home
    folder = Path(tempfile.mkdtemp(prefix=f"process-{rank()}-", dir=os.environ.get(SCRATCH)))
    for name in READ_AGAIN if resumed else ():
        if (home / name).is_dir():
            shutil.copytree(home / name, folder / name)
        elif (home / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(home / name, folder / name)
    wait()
    return folder
