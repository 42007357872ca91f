"""Running a part of a campaign from the command line: the plan is printed first, and the result last."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trueup.errors import RunError
from trueup.files import require_file
from trueup.provenance import seals

if TYPE_CHECKING:
    from rich.console import Console

    from trueup.campaign import Campaign, PlannedStage
    from trueup.runner import Follower


def run_to(
    campaign: Campaign,
    target: str | None,
    force: tuple[str, ...] = (),
    plan_only: bool = False,
    only: str | None = None,
    follower: Follower | None = None,
) -> None:
    """Run the stages that `target` needs, or one alone.

    force     stages that run even if they are up to date
    follower  another thread that follows the stages and may stop them
    """
    from trueup.campaign import plan
    from trueup.checking.model import fetch, settle
    from trueup.runner import run_steps

    started, console = time.monotonic(), make_console()
    with locked(campaign.run_dir) as lock:
        for hub_id in campaign.hub_ids([only] if only else campaign.needed(target)):
            campaign, note = settle(campaign, hub_id, keep=not plan_only)
            if note:
                console.print(note, highlight=False, markup=False)
        steps = plan(campaign, target, force, (only,) if only else None)
        print_plan(console, campaign, steps)
        if plan_only:
            return
        fetch(campaign, [step.stage for step in steps if step.action != "keep"])
        run_steps(campaign, steps, console, lock, follower=follower)
    _print_outcome(console, campaign, steps, time.monotonic() - started)


def make_console() -> Console:
    from rich.console import Console

    class OwnConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this while it handles the error, which `trueup.cli.main` knows

    # Without a terminal lines are not wrapped, so that a log can be searched.
    return OwnConsole(soft_wrap=not sys.stdout.isatty())


def print_plan(console: Console, campaign: Campaign, steps: list[PlannedStage]) -> None:
    from rich.markup import escape

    console.print(f"[bold]{escape(campaign.config.name)}[/] in {escape(str(campaign.run_dir))}", highlight=False)
    for step in steps:
        mark = {"keep": "[green]keep  [/]", "run": "[bold]run   [/]", "resume": "[yellow]resume[/]"}[step.action]
        launched = campaign.launched(step.stage) if step.action != "keep" else ""
        reason = "; ".join(filter(None, (step.reason, launched, campaign.stages[step.stage].remark)))
        console.print(f"  {step.stage:<{campaign.width}} {mark} {escape(reason)}", highlight=False)
    console.print()


def _print_outcome(console: Console, campaign: Campaign, steps: list[PlannedStage], seconds: float) -> None:
    from trueup import runs
    from trueup.console import printable

    stages = [runs.open_stage(campaign.run_dir, step.stage) for step in steps]
    console.print()
    for step, result in zip(steps, stages, strict=True):
        rate = result.manifest.tokens_per_s
        console.print(
            f"  {step.stage:<{campaign.width}} {result.manifest.duration_s:7.0f} s  {result.manifest.verdict.status:<5}"
            f"{f'{rate:8.0f} tokens/s' if rate else ''}",
            highlight=False,
        )
    if any(step.action != "keep" for step in steps):
        console.print(f"  {'in all':<{campaign.width}} {seconds:7.0f} s", highlight=False)
    last = stages[-1]
    if last.manifest.stage == "compare":
        console.print()
        for finding in last.manifest.verdict.findings:
            console.print(printable(finding.message), highlight=False, markup=False)
        console.print(
            f"\nReport: {last.dir / 'report.html'}\nLook at the answers: trueup serve {campaign.run_dir}",
            highlight=False,
            markup=False,
        )


@contextmanager
def locked(run_dir: Path) -> Iterator[int]:
    """Hold the run directory; a second holder is refused. Yields the descriptor, which children inherit.

    The lock belongs to the open file, so it lives as long as any process that inherited it: a stage whose parent was
    killed still protects the folder that it writes to.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir}: is not a folder, as a run must be: move it elsewhere, or give another run_dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in (".lock", seals.SEALS):
        require_file(run_dir / name)
    with (run_dir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{run_dir} is in use by another trueup (process {file.read().strip() or 'unknown'}); wait, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()
