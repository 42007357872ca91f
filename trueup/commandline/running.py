"""Running a part of a campaign from the command line: the plan is printed first, and the result last."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

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
    from trueup import runs
    from trueup.campaign import plan
    from trueup.checking.model import fetch, settle
    from trueup.runner import run_steps

    started, console = time.monotonic(), make_console()
    with runs.locked(campaign.run_dir) as lock:
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
        remark = campaign.stages[step.stage].remark
        reason = f"{step.reason}; {remark}" if remark else step.reason
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
