"""The command line. Each command itself imports what takes time to import; `--help` imports none of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trueup import __version__
from trueup.commandline import data
from trueup.commandline.commands import (
    FIRST_UNFINISHED,
    Command,
    described,
    print_text,
    read_campaign,
    takes_config,
    takes_round,
    takes_run,
)
from trueup.commandline.running import make_console, print_plan, run_to
from trueup.stages import COMMANDS, STAGES, load_object

if TYPE_CHECKING:
    from trueup.config import StageConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 success, 1 a check failed or a stage crashed, 2 an error, 3 the campaign waits for
    labels, 4 a gate was not passed; 130 after Ctrl-C, 141 if nobody reads the output any more (`| head`), as a shell
    reports programs that these signals ended."""
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()  # here, since Python's own flush at the end would print a traceback
    except BrokenPipeError:
        from trueup.console import is_unread, silence

        if not is_unread():
            raise
        silence()
        return 141


def _main(argv: Sequence[str] | None) -> int:
    arguments = make_parser().parse_args(command_first(sys.argv[1:] if argv is None else argv))
    from trueup.errors import LabelsPending, StageCrashed, TrueupError, of_the_machine

    try:
        return arguments.command(arguments)
    except LabelsPending as message:
        print_text(str(message))
        return 3
    except TrueupError as error:
        print_text(str(error), file=sys.stderr)
        return 2
    except StageCrashed as crash:
        print_text(str(crash), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print_text("\nInterrupted. The same command continues where this one stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if (sentence := of_the_machine(error)) is None:
            raise
        print_text(sentence, file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trueup",
        description="Align a language model to your own preferences: from demonstrations to a verdict with error bars.",
    )
    parser.add_argument("--version", action="version", version=f"trueup {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    by_name = _commands()
    for name, command in by_name.items():
        further = [f"`trueup {other}`" for other in by_name if other.startswith(f"{name} ")]
        epilog = f"Further commands: {', '.join(further)}." if further else None
        one = commands.add_parser(name, epilog=epilog, **described(command.does))
        one.set_defaults(command=command.run, name=name)
        command.takes(one)
    return parser


def _commands() -> dict[str, Command]:
    """All commands by name, in the order of the help text. A package's own commands come last or replace a stage's."""
    commands = {
        "run": Command("run the whole sequence: complete stages are kept, interrupted ones continue", _takes_run, _run),
        **{
            name: Command(stage.does, _takes_compare if name == "compare" else _takes_stage, _stage)
            for name, stage in STAGES.items()
        },
        "check": Command("find every problem that can be found without training", takes_config, _check),
        "keys": Command("print the keys of a campaign file: type, default, meaning", _takes_section, _keys),
        "status": Command("print which stages are done, which are stale and why", takes_config, _status),
        "verify": Command("recompute every hash in a run's manifests", _takes_root, _verify),
        "export": Command("copy a result out of a run, with its provenance", _takes_export, _export),
        **data.COMMANDS,
    }
    for name in COMMANDS:
        commands |= load_object(name)
    return commands


def command_first(words: Sequence[str]) -> Sequence[str]:
    """The words of a command line with those that name the command as one: `reward score` is a command beside
    `reward`, whose own first argument is a file."""
    name = " ".join(words[:2])
    return [name, *words[2:]] if name in _commands() else words


def _takes_run(parser: argparse.ArgumentParser) -> None:
    takes_config(parser)
    parser.add_argument("--until", choices=tuple(STAGES), default=None, help="stop after this stage")
    parser.add_argument(
        "--force", action="append", default=[], choices=tuple(STAGES), help="run this stage even if it is up to date"
    )
    takes_round(parser, "--until, --force and --gate are about it (the last)")
    parser.add_argument("--plan", action="store_true", help="print what would run and why, and stop")
    _takes_gate(parser)


def _takes_stage(parser: argparse.ArgumentParser) -> None:
    takes_config(parser)
    takes_round(parser, FIRST_UNFINISHED)
    parser.add_argument("--force", action="store_true", help="run the stage even if it is up to date")


def _takes_compare(parser: argparse.ArgumentParser) -> None:
    _takes_stage(parser)
    _takes_gate(parser)


def _takes_section(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("section", nargs="?", default="", help="section or key: sft, align.ppo, sample.temperature")


def _takes_root(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    parser.add_argument(
        "--root", help="the root that an earlier `trueup verify` printed; a run without it is a problem"
    )


def _takes_export(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    parser.add_argument("what", choices=("policy", "sft", "reward", "preferences"), help="what to copy")
    parser.add_argument("to", type=Path, help="new folder for the copy")
    takes_round(parser, "without it the last that has the result")


def _takes_gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gate",
        nargs="?",
        const="improved",
        choices=tuple(GATES),
        help="exit with 4 unless the verdict is at least this good: improved (the default), price (improved, at any "
        "price), not-worse (or no detectable change); a comparison without a verdict passes no gate",
    )


# ---- Running ----------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    campaign = read_campaign(arguments)
    if arguments.gate and arguments.until not in (None, "compare"):
        from trueup.errors import TrueupError

        raise TrueupError(
            f"--gate needs the verdict, which --until {arguments.until} does not reach; leave one of them out"
        )
    compare = campaign.in_round("compare", arguments.round)  # before anything runs, so that a wrong round is told
    if arguments.round and not (arguments.until or arguments.force or arguments.gate):
        from trueup.errors import TrueupError

        raise TrueupError("--round says which round --until, --force and --gate are about; name one of them too")
    until = campaign.in_round(arguments.until, arguments.round).address if arguments.until else None
    force = tuple(campaign.in_round(stage, arguments.round).address for stage in arguments.force)
    run_to(campaign, until, force, arguments.plan)
    return 0 if arguments.plan else _gate(compare, arguments.gate)


def _stage(arguments: argparse.Namespace) -> int:
    """Run one stage alone. Its parents must be finished."""
    from trueup import runs
    from trueup.campaign import why_stale

    campaign = read_campaign(arguments)
    config = campaign.at_work(arguments.name, arguments.round)
    for parent in config.parent_names():
        runs.open_stage(campaign.run_dir, parent)
        if reason := why_stale(campaign.stages[parent]):
            print_text(f"{parent} is used as it is, but is not up to date: {reason}", file=sys.stderr)
    run_to(campaign, config.address, (config.address,) if arguments.force else (), only=config.address)
    return _gate(config, getattr(arguments, "gate", None))


GATES = {
    "improved": ("improved",),
    "price": ("improved", "improved_at_a_price"),
    "not-worse": ("improved", "improved_at_a_price", "no_detectable_change"),
}
"""The outcomes of the comparison that pass each gate."""


def _gate(compare: StageConfig, gate: str | None) -> int:
    """The exit code: 0 without a gate or if the comparison passes it, else 4."""
    if gate is None:
        return 0
    from trueup import runs
    from trueup.artifacts.reports import ComparisonFigures

    outcome = runs.open_stage(compare.run_dir, "compare").report(ComparisonFigures).verdict.outcome
    passes = outcome in GATES[gate]
    print_text(f"gate {gate}: {'passed' if passes else 'not passed'}, the verdict is {outcome}", file=sys.stderr)
    return 0 if passes else 4


# ---- Looking ----------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    from trueup.check import check

    campaign = read_campaign(arguments)
    problems, notes = check(campaign)
    for note in notes:
        print_text(f"ok       {note}")
    for problem in problems:
        print_text(f"problem  {problem}")
    count = len(problems)
    print_text(
        f"{arguments.config}: {'no problems' if not count else '1 problem' if count == 1 else f'{count} problems'}"
    )
    return 1 if problems else 0


def _keys(arguments: argparse.Namespace) -> int:
    import shutil
    import textwrap

    from trueup.commandline.keys import find, within

    width = min(shutil.get_terminal_size().columns, 100)
    table = find(arguments.section)
    print_text(textwrap.fill(f"{table.name}: {table.does}" if table.name else table.does, width))
    for key in table.keys:
        default = key.default if key.default == "required" else f"default {key.default}"
        print_text(f"\n{key.name}: {key.type.replace('`', '')}; {default}")
        print_text(textwrap.fill(key.meaning, width, initial_indent="    ", subsequent_indent="    "))
    if sections := within(arguments.section):
        print_text("\n" + textwrap.fill(f"Sections: {', '.join(sections)}", width))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from trueup.campaign import plan

    campaign = read_campaign(arguments)
    print_plan(make_console(), campaign, plan(campaign))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from trueup.verify import verify

    result = verify(arguments.run, arguments.root)
    for note in result.notes:
        print_text(f"note     {note}")
    for problem in result.problems:
        print_text(f"problem  {problem}")
    count = "1 problem" if len(result.problems) == 1 else f"{len(result.problems)} problems"
    print_text(f"{arguments.run}: {result.checked} hashes checked, {count}")
    if result.root and not result.problems:
        print_text(
            f"root     {result.root}\n         Seals show accidents, and edits that did not rewrite the whole chain. "
            "Store the root elsewhere:\n         `trueup verify RUN --root ROOT` then proves that nothing sealed up to "
            "now has changed."
        )
    return 1 if result.problems else 0


def _export(arguments: argparse.Namespace) -> int:
    from trueup.exporting.export import export

    print_text(export(arguments.run, arguments.what, arguments.to, arguments.round))
    return 0
