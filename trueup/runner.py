"""Run a plan: stages as processes, side by side if possible, with their progress drawn in one place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trueup import runs
from trueup.campaign import Campaign, PlannedStage
from trueup.console import Event, printable
from trueup.errors import LabelsPending, StageCrashed, StageFailed
from trueup.files import require_file

OF_OTHERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Of the environment: what a cluster's launcher tells the processes that it starts. Stages are started by us."""


class Follower:
    """How another thread follows the stages at work, and stops them. Ctrl-C in the terminal does not reach them."""

    def __init__(self, on_event: Callable[[str, Event], None]):
        """
        on_event  called with the stage and each of its events, in the thread that runs the steps
        """
        self.on_event = on_event
        self.events: Queue[tuple[str, Event | None] | None] = Queue()

    def stop(self) -> None:
        """End the stages; `run_steps` then raises KeyboardInterrupt."""
        self.events.put(None)


def run_steps(
    campaign: Campaign,
    steps: list[PlannedStage],
    console: Console,
    lock: int,
    follower: Follower | None = None,
) -> None:
    """Run the steps that are not kept, each as soon as its parents are finished."""
    waiting = [step.stage for step in steps if step.action != "keep"]
    past = set(campaign.stages) - set(waiting)
    limit = side_by_side()
    running: dict[str, _Child] = {}
    pending: LabelsPending | None = None
    apart = follower is not None
    follower = follower or Follower(lambda stage, event: None)
    board = _Board(console, campaign.width)
    with board:
        try:
            # After LabelsPending some that wait are never ready.
            while running or _ready(campaign, waiting, past, running, limit):
                for stage in _ready(campaign, waiting, past, running, limit):
                    waiting.remove(stage)
                    threads = _threads(campaign, waiting, past, running, stage, limit)
                    running[stage] = _Child(campaign, stage, threads, lock, follower.events, list(waiting), apart)
                    board.start(stage)
                entry = follower.events.get()
                if entry is None:
                    raise KeyboardInterrupt
                stage, event = entry
                if event is not None:
                    board.show(stage, event)
                    running[stage].remember(event)
                    follower.on_event(stage, event)
                    continue
                child = running.pop(stage)
                try:
                    child.finish()
                except LabelsPending as message:  # what does not need these labels is done meanwhile
                    pending = message
                    board.wait(stage, message)
                    continue
                past.add(stage)
                board.finish(stage, child)
        except BaseException:
            for child in running.values():
                child.stop()
            raise
    if pending is not None:
        raise pending


def side_by_side() -> int:
    """Number of stages at a time: two on a CPU, where two processes of one thread beat one of two; else one."""
    accelerated = sys.platform == "darwin" or any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    return 1 if accelerated or (os.cpu_count() or 1) < 2 else 2


def _ready(campaign: Campaign, waiting: list[str], past: set[str], running: dict[str, _Child], limit: int) -> list[str]:
    free = limit - len(running)
    return [stage for stage in waiting if set(campaign.stages[stage].parent_names()) <= past][: max(0, free)]


def _threads(
    campaign: Campaign, waiting: list[str], past: set[str], running: dict[str, _Child], stage: str, limit: int
) -> int:
    """Threads of a stage: all cores, or its share if another stage runs beside it or starts with it."""
    beside = len(running) + len(_ready(campaign, waiting, past, {**running, stage: None}, limit))  # type: ignore[dict-item]
    return max(1, (os.cpu_count() or 1) // min(limit, beside + 1))


@dataclass
class _Child:
    """A stage's process, and the thread that reads its events."""

    campaign: Campaign
    stage: str
    threads: int
    lock: int
    events: Queue[tuple[str, Event | None] | None]
    ahead: list[str]
    """The stages that will follow. This one checks at once what would stop them."""
    apart: bool
    """Whether signals of the terminal do not reach it."""
    error: Event | None = None

    def __post_init__(self) -> None:
        directory = runs.stage_dir(self.campaign.run_dir, self.stage)
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / runs.LOG
        require_file(self.log)
        environment = {key: value for key, value in os.environ.items() if key not in OF_OTHERS}
        environment["OMP_NUM_THREADS"] = str(self.threads)
        launched = bool(self.campaign.launched(self.stage))
        module = "trueup.commandline.launch" if launched else "trueup.stage"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, self.stage],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(self.lock,),
                process_group=0 if self.apart or launched else None,
                env=environment,
                text=True,
            )
        assert self.process.stdin and self.process.stdout
        campaign = {"source": str(self.campaign.source), "values": self.campaign.values}
        self.process.stdin.write(json.dumps({**campaign, "ahead": self.ahead}, default=str))
        self.process.stdin.close()
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                self.events.put((self.stage, json.loads(line)))
            except ValueError:  # what a library wrote past us
                with self.log.open("a", encoding="utf-8") as log:
                    log.write(line)
        self.process.wait()
        self.events.put((self.stage, None))

    def remember(self, event: Event) -> None:
        if "error" in event and self.error is None:  # of several processes the first knows why
            self.error = event

    def finish(self) -> None:
        """Raise the stage's error, if it failed."""
        if self.error and self.error["kind"] == "LabelsPending":
            raise LabelsPending(self.error["error"])
        if self.error:
            raise StageFailed(f"{self.stage}: {self.error['error']}")
        code = self.process.returncode
        if code in (130, -2):
            raise KeyboardInterrupt
        if code:
            tail = "\n".join(deque(self.log.read_text(encoding="utf-8", errors="replace").splitlines(), maxlen=40))
            how = f"was killed by signal {-code}{' (out of memory?)' if code == -9 else ''}" if code < 0 else "crashed"
            raise StageCrashed(tail, f"{self.stage} {how}; its whole log is {self.log}. The same command continues.")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()


# ---- What the watcher sees --------------------------------------------------------------------------------------


class _Board(AbstractContextManager["_Board"]):
    """Progress bars on a terminal; without one, a line at the start and the end of each stage."""

    def __init__(self, console: Console, width: int):
        """
        width  characters of the longest name of a stage
        """
        self.console, self.width = console, width
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        columns = (
            TextColumn(f"[bold]{{task.description:<{self.width}}}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self.context: AbstractContextManager[Any] = self.bars or nullcontext()

    def __enter__(self) -> _Board:
        self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)

    def start(self, stage: str) -> None:
        self.started[stage] = time.time()
        self.console.print(f"[bold]{stage:<{self.width}}[/] starts", highlight=False)
        if self.bars:
            self.tasks[stage] = self.bars.add_task(stage, total=None, measures="loading")

    def show(self, stage: str, event: Event) -> None:
        if "say" in event:
            self.console.print(f"{stage:<{self.width}} [dim]{_escape(event['say'])}[/]", highlight=False)
        elif "progress" in event and self.bars:
            step, total = event["progress"]
            measures = "  ".join(
                f"{value:.0f} tokens/s" if name == "tokens_per_s" else f"{name} {value:.3f}"
                for name, value in event["measures"].items()
            )
            self.bars.update(self.tasks[stage], completed=step, total=total, measures=measures)

    def wait(self, stage: str, message: LabelsPending) -> None:
        first = str(message).splitlines()[0]
        self.console.print(f"{stage:<{self.width}} waits: {_escape(printable(first))}", highlight=False)
        if self.bars:
            self.bars.remove_task(self.tasks[stage])

    def finish(self, stage: str, child: _Child) -> None:
        verdict = runs.open_stage(child.campaign.run_dir, stage).manifest.verdict
        colour = {"pass": "green", "warn": "yellow", "fail": "red"}[verdict.status]
        name, seconds = f"{stage:<{self.width}}", time.time() - self.started[stage]
        self.console.print(f"[bold]{name}[/] [{colour}]{verdict.status}[/] in {seconds:.0f} s", highlight=False)
        for finding in verdict.findings:
            self.console.print(f"{name} {finding.level}: {_escape(printable(finding.message))}", highlight=False)
        if self.bars:
            self.bars.remove_task(self.tasks[stage])


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
