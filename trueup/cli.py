"""The command line. Every import that costs time is made by the command that needs it; `--help` imports none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trueup import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from trueup.campaign import Campaign, Step

STAGES = ("sft", "sample", "label", "reward", "align", "compare")
_DOES = {
    "sft": "instruction-tune the base model on demonstrations",
    "sample": "sample candidate answers from the SFT policy",
    "label": "open the labelling page over the campaign's store",
    "reward": "train the reward model and write its report card",
    "align": "align the SFT policy to the preferences",
    "compare": "compare SFT and aligned policies on held-out prompts",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 done, 1 a check failed or a stage crashed, 2 an error, 3 labels wanted."""
    arguments = _parser().parse_args(argv)
    from trueup.errors import LabelsWanted, StageCrashed, TrueupError

    try:
        return arguments.command(arguments)
    except LabelsWanted as wanted:
        print(wanted)
        return 3
    except TrueupError as error:
        print(error, file=sys.stderr)
        return 2
    except StageCrashed as crash:
        print(crash, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues where this one stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trueup",
        description="Align a language model to your own preferences: from demonstrations to a verdict with error bars.",
    )
    parser.add_argument("--version", action="version", version=f"trueup {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, does: str, function: object) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        made.set_defaults(command=function, name=name)
        return made

    def takes_config(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made.add_argument("config", type=Path, help="campaign file, such as configs/demo.yaml")
        made.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: align.beta=0.3"
        )
        return made

    run = takes_config(
        command("run", "run the whole sequence: what is complete is kept, what was interrupted goes on", _run)
    )
    run.add_argument("--until", choices=STAGES, default=None, help="stop after this stage")
    run.add_argument(
        "--force", action="append", default=[], choices=STAGES, help="run this stage though it is up to date"
    )
    run.add_argument("--plan", action="store_true", help="print what would run and why, and stop")
    for stage in STAGES:
        made = takes_config(command(stage, _DOES[stage], _label if stage == "label" else _stage))
        if stage == "label":
            _serves(made)
        else:
            made.add_argument("--force", action="store_true", help="run it though it is up to date")
    takes_config(command("check", "find every problem that can be found without training", _check))
    takes_config(command("status", "say what is done, what is stale and why", _status))
    verify = command("verify", "recompute every hash that a run's manifests state", _verify)
    verify.add_argument("run", type=Path, help="run directory, such as runs/demo")
    export = command("export", "copy a result out of a run, with its provenance", _export)
    export.add_argument("run", type=Path, help="run directory, such as runs/demo")
    export.add_argument("what", choices=("policy", "sft", "reward", "preferences"), help="what to copy")
    export.add_argument("to", type=Path, help="folder to make")
    serve = command("serve", "open the web application over a run: comparison, report, labels", _serve)
    serve.add_argument("run", type=Path, help="run directory, such as runs/demo")
    _serves(serve)
    return parser


def _serves(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--host", default="127.0.0.1", help="address to bind; only this machine's own until accounts exist"
    )
    made.add_argument("--port", type=int, default=7860, help="port; 0 takes a free one")


# ---- Running ----------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    campaign = _campaign(arguments)
    return _run_to(campaign, arguments.until, tuple(arguments.force), arguments.plan)


def _stage(arguments: argparse.Namespace) -> int:
    """One stage alone: its parents must be there."""
    from trueup import runs
    from trueup.campaign import why_stale

    campaign = _campaign(arguments)
    for parent in campaign.stages[arguments.name].parents():
        runs.open_stage(campaign.run_dir, parent)
        if reason := why_stale(campaign.stages[parent]):
            print(f"{parent} is used as it stands, but is not up to date: {reason}", file=sys.stderr)
    return _run_to(campaign, arguments.name, (arguments.name,) if arguments.force else (), only=arguments.name)


def _run_to(
    campaign: Campaign,
    target: str | None,
    force: tuple[str, ...] = (),
    plan_only: bool = False,
    only: str | None = None,
) -> int:
    from trueup import runs
    from trueup.campaign import plan
    from trueup.runner import run_steps

    console = _console()
    with runs.locked(campaign.run_dir) as lock:
        steps = plan(campaign, target, force, (only,) if only else None)
        _print_plan(console, campaign, steps)
        if plan_only:
            return 0
        run_steps(campaign, steps, console, lock)
    _print_outcome(console, campaign, steps)
    return 0


def _console() -> Console:
    from rich.console import Console

    # Off a terminal, lines are as long as they are: a log is searched, not looked at.
    return Console(soft_wrap=not sys.stdout.isatty())


def _print_plan(console: Console, campaign: Campaign, steps: list[Step]) -> None:
    from rich.markup import escape

    console.print(f"[bold]{escape(campaign.config.name)}[/] in {escape(str(campaign.run_dir))}", highlight=False)
    for step in steps:
        mark = {"keep": "[green]keep  [/]", "run": "[bold]run   [/]", "resume": "[yellow]resume[/]"}[step.action]
        console.print(f"  {step.stage:<8} {mark} {escape(step.reason)}", highlight=False)
    console.print()


def _print_outcome(console: Console, campaign: Campaign, steps: list[Step]) -> None:
    from trueup import runs

    stages = [runs.open_stage(campaign.run_dir, step.stage) for step in steps]
    console.print()
    for step, made in zip(steps, stages, strict=True):
        rate = made.manifest.get("tokens_per_s")
        console.print(
            f"  {step.stage:<8} {made.manifest['duration_s']:7.0f} s  {made.manifest['verdict']['status']:<5}"
            f"{f'{rate:8.0f} tokens/s' if rate else ''}",
            highlight=False,
        )
    last = stages[-1]
    if last.stage == "compare":
        console.print()
        for finding in last.manifest["verdict"]["findings"]:
            console.print(finding["message"], highlight=False, markup=False)
        console.print(
            f"\nReport: {last.dir / 'report.html'}\nLook at the answers: trueup serve {campaign.run_dir}",
            highlight=False,
            markup=False,
        )


def _campaign(arguments: argparse.Namespace) -> Campaign:
    from trueup.campaign import load_campaign

    return load_campaign(arguments.config, arguments.set)


# ---- Looking ----------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    from trueup.check import check

    campaign = _campaign(arguments)
    problems, notes = check(campaign)
    for note in notes:
        print(f"ok       {note}")
    for problem in problems:
        print(f"problem  {problem}")
    count = len(problems)
    print(f"{arguments.config}: {'no problems' if not count else '1 problem' if count == 1 else f'{count} problems'}")
    return 1 if problems else 0


def _status(arguments: argparse.Namespace) -> int:
    from trueup.campaign import plan

    campaign = _campaign(arguments)
    _print_plan(_console(), campaign, plan(campaign))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from trueup.runs import verify

    checked, problems = verify(arguments.run)
    for problem in problems:
        print(problem)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{arguments.run}: {checked} hashes checked, {count}")
    return 1 if problems else 0


def _export(arguments: argparse.Namespace) -> int:
    from trueup.export import export

    print(export(arguments.run, arguments.what, arguments.to))
    return 0


# ---- Pages ------------------------------------------------------------------------------------------------------


def _label(arguments: argparse.Namespace) -> int:
    from trueup import campaign

    config = _campaign(arguments).stages["label"]
    campaign.load_object("ui.app:serve_label")(config, host=arguments.host, port=arguments.port)
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from trueup import campaign

    campaign.load_object("ui.app:serve_run")(arguments.run, host=arguments.host, port=arguments.port)
    return 0
