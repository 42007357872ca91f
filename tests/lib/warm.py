"""Python code in a process of its own that need not import what trains: a server has, once, and each process is a copy
of it. A fresh process takes six seconds for these imports, most of what a tiny training takes.

Not for what measures memory: a copy maps the pages of libraries anew, as it comes to them, and seems to grow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context, set_forkserver_preload
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[2]
IMPORTED = ("rlhf.align.ppo.stage", "rlhf.align.ppo.trainer")
"""Modules that import all else: torch, transformers, trl, peft, datasets."""


def start(
    code: str, *arguments: str, said: Path, **environment: str
) -> Callable[[int], subprocess.CompletedProcess[str]]:
    """Start `python -c CODE ARGUMENTS` in the repository; what it returns waits for the end, at most so many seconds.

    said         a file for its standard output, and, with .err behind it, one for its standard error
    environment  variables beside those of this process
    """
    set_forkserver_preload(list(IMPORTED))
    # A copy cannot use a GPU, since its parent has asked whether there is one.
    context: Any = get_context("spawn" if torch.cuda.is_available() else "forkserver")
    files = (said, said.with_name(f"{said.name}.err"))
    process = context.Process(target=_run, args=(code, arguments, {**os.environ, **environment}, files))
    process.start()

    def wait(seconds: int) -> subprocess.CompletedProcess[str]:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(code, seconds)
        return subprocess.CompletedProcess(
            code, process.exitcode, *(file.read_text(encoding="utf-8") for file in files)
        )

    return wait


def _run(code: str, arguments: tuple[str, ...], environment: dict[str, str], files: tuple[Path, Path]) -> None:
    os.chdir(REPOSITORY)
    os.environ.update(environment)
    sys.argv[:] = ["-c", *arguments]
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
