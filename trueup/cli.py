"""The command line. Every import that costs time is made by the command that needs it; `--help` imports none."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

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
    """Run a command. The exit code is 0 done, 1 a check failed or a stage crashed, 2 an error, 3 labels wanted, 4 a
    gate was not passed."""
    arguments = make_parser().parse_args(argv)
    from trueup.errors import LabelsWanted, StageCrashed, TrueupError, of_the_machine

    try:
        return arguments.command(arguments)
    except LabelsWanted as wanted:
        _print(str(wanted))
        return 3
    except TrueupError as error:
        _print(str(error), file=sys.stderr)
        return 2
    except StageCrashed as crash:
        _print(str(crash), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _print("\nInterrupted. The same command continues where this one stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if (sentence := of_the_machine(error)) is None:
            raise
        _print(sentence, file=sys.stderr)
        return 2


def _print(text: object, file: IO[str] | None = None) -> None:
    """Print what may hold other people's text: file names, answers, notes."""
    from trueup.console import printable

    print(printable(str(text)), file=file)


def make_parser() -> argparse.ArgumentParser:
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
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: sample.temperature=1"
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
    _gates(run)
    for stage in STAGES:
        made = takes_config(command(stage, _DOES[stage], _label if stage == "label" else _stage))
        if stage == "label":
            _serves(made)
        else:
            made.add_argument("--force", action="store_true", help="run it though it is up to date")
        if stage == "compare":
            _gates(made)
    takes_config(command("check", "find every problem that can be found without training", _check))
    keys = command("keys", "print the keys of a campaign file: type, default, meaning", _keys)
    keys.add_argument("section", nargs="?", default="", help="section or key: sft, align.ppo, sample.temperature")
    takes_config(command("status", "say what is done, what is stale and why", _status))
    verify = command("verify", "recompute every hash that a run's manifests state", _verify)
    verify.add_argument("run", type=Path, help="run directory, such as runs/demo")
    verify.add_argument(
        "--root", help="the root that an earlier `trueup verify` printed: a problem if the run has another one now"
    )
    export = command("export", "copy a result out of a run, with its provenance", _export)
    export.add_argument("run", type=Path, help="run directory, such as runs/demo")
    export.add_argument("what", choices=("policy", "sft", "reward", "preferences"), help="what to copy")
    export.add_argument("to", type=Path, help="folder to make")
    serve = command("serve", "open the web application over a run: comparison, report, labels", _serve)
    serve.add_argument("run", type=Path, help="run directory, such as runs/demo")
    serve.add_argument(
        "--trust",
        action="store_true",
        help="the run is your own: open the database that its config names, and run Python that comes with its model "
        "where the config allows it (trust_remote_code). Without this a run is data",
    )
    _serves(serve)
    _add_accounts(command("accounts", "say who may label and who may administer", _accounts), takes_config)
    _add_labels(command("labels", "import, export, promote, back up, count and check labels", _labels), takes_config)
    return parser


def _gates(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--gate",
        nargs="?",
        const="improved",
        choices=tuple(GATES),
        help="exit with 4 unless the verdict is as good: improved (the default), price (improved, at whatever price), "
        "not-worse (no detectable change will do); without a judge who can decide no gate is passed",
    )


def _serves(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--host", default="127.0.0.1", help="address to bind; another than this machine's own needs accounts"
    )
    made.add_argument("--port", type=int, default=7860, help="port; 0 takes a free one")
    made.add_argument(
        "--url",
        help="scheme and host that people open, if a proxy stands in front: https://label.example.org (needs accounts)",
    )
    made.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address or network of that proxy, whose X-Forwarded-For is then believed: 127.0.0.1 (may be repeated)",
    )


TakesConfig = Callable[[argparse.ArgumentParser], argparse.ArgumentParser]


def _actions(made: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    actions = made.add_subparsers(metavar="ACTION", dest="action", required=True)
    return lambda name, does: actions.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")


def _add_accounts(made: argparse.ArgumentParser, takes_config: TakesConfig) -> None:
    action = _actions(made)
    secret = "the password is asked for, or read from the first line of standard input"
    for name, does in {
        "add": f"add an account; {secret}",
        "password": f"give an account a new password, and sign it out everywhere; {secret}",
        "disable": "let somebody in no more, from this moment; their labels stay",
        "enable": "let a disabled account in again",
    }.items():
        one = takes_config(action(name, does))
        one.add_argument("name", help="name to sign in with; labels never carry it")
        if name == "add":
            _takes_role(one)
    invite = takes_config(action("invite", "make a link with which one person makes an account"))
    _takes_role(invite)
    invite.add_argument("--days", type=float, default=7, help="days that the link is good for (7)")
    invite.add_argument(
        "--url", default="http://127.0.0.1:7860", help="scheme and host at which people reach the pages"
    )
    takes_config(action("invitations", "list the invitations that are open"))
    withdraw = takes_config(action("withdraw", "make an open invitation of no use"))
    withdraw.add_argument("invitation", help="its id, or how that begins, as `invitations` lists it")
    takes_config(action("list", "list accounts: names, pseudonyms, roles"))


def _takes_role(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--role",
        choices=("annotator", "admin"),
        default="annotator",
        help="an annotator labels and sees no results; an admin sees everything (annotator)",
    )


def _add_labels(made: argparse.ArgumentParser, takes_config: TakesConfig) -> None:
    action = _actions(made)
    file = takes_config(action("import", "put the preferences of a file into the campaign's store"))
    file.add_argument("file", type=Path, help="preferences in any format of docs/formats.md")
    file.add_argument(
        "--on-bad-rows",
        choices=("refuse", "drop"),
        help="refuse a file with rows that cannot be read, or drop those, counted and kept aside (label.on_bad_rows)",
    )
    file.add_argument(
        "--ignore-columns",
        nargs="+",
        metavar="COLUMN",
        help="columns that change nothing of what a row means, so that none is refused for them (label.ignore_columns)",
    )
    export = takes_config(action("export", "write the current labels with their provenance"))
    export.add_argument("to", type=Path, help="file or folder to make")
    export.add_argument(
        "--format",
        choices=("jsonl", "datasets"),
        default="jsonl",
        help="TRL's conversational prompt/chosen/rejected as JSON Lines, or as a folder for datasets.load_from_disk",
    )
    export.add_argument(
        "--rankings", choices=("pairs", "whole"), default="pairs", help="rankings as all their pairs, or one a row"
    )
    takes_config(action("stats", "say how many labels there are, how far people agree, and what could explain them"))
    blind = takes_config(
        action("blindcheck", "label a copy of the store, and search what the browser gets for identifiers")
    )
    blind.add_argument("--browser", action="store_true", help="by the keys of a real Chromium, not over HTTP")
    takes_config(action("promote", "copy the votes on the run's comparison into the campaign's labels"))
    backup = takes_config(action("backup", "copy the store while people label"))
    backup.add_argument("to", type=Path, help="file to make")


# ---- Running ----------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    campaign = _campaign(arguments)
    if arguments.gate and arguments.until not in (None, "compare"):
        from trueup.errors import TrueupError

        raise TrueupError(
            f"--gate asks for the verdict, which --until {arguments.until} does not reach; leave one of them out"
        )
    code = _run_to(campaign, arguments.until, tuple(arguments.force), arguments.plan)
    return code or (0 if arguments.plan else _gate(campaign, arguments.gate))


def _stage(arguments: argparse.Namespace) -> int:
    """One stage alone: its parents must be there."""
    from trueup import runs
    from trueup.campaign import why_stale

    campaign = _campaign(arguments)
    for parent in campaign.stages[arguments.name].parents():
        runs.open_stage(campaign.run_dir, parent)
        if reason := why_stale(campaign.stages[parent]):
            _print(f"{parent} is used as it stands, but is not up to date: {reason}", file=sys.stderr)
    code = _run_to(campaign, arguments.name, (arguments.name,) if arguments.force else (), only=arguments.name)
    return code or _gate(campaign, getattr(arguments, "gate", None))


GATES = {
    "improved": ("improved",),
    "price": ("improved", "improved_at_a_price"),
    "not-worse": ("improved", "improved_at_a_price", "no_detectable_change"),
}
"""Which outcomes of the comparison a gate lets pass."""


def _gate(campaign: Campaign, wanted: str | None) -> int:
    """0: no gate, or its verdict was reached; 4: it was not."""
    if wanted is None:
        return 0
    from trueup import runs

    report = runs.open_stage(campaign.run_dir, "compare").dir / "report.json"
    outcome = json.loads(report.read_text(encoding="utf-8"))["verdict"]["outcome"]
    passes = outcome in GATES[wanted]
    _print(f"gate {wanted}: {'passed' if passes else 'not passed'}, the verdict is {outcome}", file=sys.stderr)
    return 0 if passes else 4


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

    started, console = time.monotonic(), _console()
    with runs.locked(campaign.run_dir) as lock:
        steps = plan(campaign, target, force, (only,) if only else None)
        _print_plan(console, campaign, steps)
        if plan_only:
            return 0
        run_steps(campaign, steps, console, lock)
    _print_outcome(console, campaign, steps, time.monotonic() - started)
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


def _print_outcome(console: Console, campaign: Campaign, steps: list[Step], seconds: float) -> None:
    from trueup import runs
    from trueup.console import printable

    stages = [runs.open_stage(campaign.run_dir, step.stage) for step in steps]
    console.print()
    for step, made in zip(steps, stages, strict=True):
        rate = made.manifest.get("tokens_per_s")
        console.print(
            f"  {step.stage:<8} {made.manifest['duration_s']:7.0f} s  {made.manifest['verdict']['status']:<5}"
            f"{f'{rate:8.0f} tokens/s' if rate else ''}",
            highlight=False,
        )
    if any(step.action != "keep" for step in steps):
        console.print(f"  {'in all':<8} {seconds:7.0f} s", highlight=False)
    last = stages[-1]
    if last.stage == "compare":
        console.print()
        for finding in last.manifest["verdict"]["findings"]:
            console.print(printable(finding["message"]), highlight=False, markup=False)
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
        _print(f"ok       {note}")
    for problem in problems:
        _print(f"problem  {problem}")
    count = len(problems)
    _print(f"{arguments.config}: {'no problems' if not count else '1 problem' if count == 1 else f'{count} problems'}")
    return 1 if problems else 0


def _keys(arguments: argparse.Namespace) -> int:
    import shutil
    import textwrap

    from trueup.keys import find, within

    width = min(shutil.get_terminal_size().columns, 100)
    table = find(arguments.section)
    _print(textwrap.fill(f"{table.name}: {table.does}" if table.name else table.does, width))
    for key in table.keys:
        default = key.default if key.default == "required" else f"default {key.default}"
        _print(f"\n{key.name}: {key.type.replace('`', '')}; {default}")
        _print(textwrap.fill(key.meaning, width, initial_indent="    ", subsequent_indent="    "))
    if sections := within(arguments.section):
        _print("\n" + textwrap.fill(f"Sections: {', '.join(sections)}", width))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from trueup.campaign import plan

    campaign = _campaign(arguments)
    _print_plan(_console(), campaign, plan(campaign))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from trueup.verify import verify

    found = verify(arguments.run, arguments.root)
    for note in found.notes:
        _print(f"note     {note}")
    for problem in found.problems:
        _print(f"problem  {problem}")
    count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
    _print(f"{arguments.run}: {found.checked} hashes checked, {count}")
    if found.root and not found.problems:
        _print(
            f"root     {found.root}\n         Without a key, a seal finds accidents and edits that did not redo the "
            "whole chain. Keep the root elsewhere:\n         `trueup verify RUN --root ROOT` then proves that what "
            "was sealed up to now is as it was."
        )
    return 1 if found.problems else 0


def _export(arguments: argparse.Namespace) -> int:
    from trueup.export import export

    _print(export(arguments.run, arguments.what, arguments.to))
    return 0


# ---- Pages ------------------------------------------------------------------------------------------------------


def _label(arguments: argparse.Namespace) -> int:
    from trueup import campaign

    config: Any = _campaign(arguments).stages["label"]
    campaign.load_object("ui.app:serve_label")(config, **_where(arguments))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from trueup import campaign

    campaign.load_object("ui.app:serve_run")(arguments.run, **_where(arguments), trust=arguments.trust)
    return 0


def _where(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {"host": "host", "port": "port", "url": "url", "proxies": "proxy"}
    return {name: getattr(arguments, option) for name, option in names.items()}


# ---- People and labels ------------------------------------------------------------------------------------------


def _accounts(arguments: argparse.Namespace) -> int:
    from trueup import campaign

    config: Any = _campaign(arguments).stages["label"]
    store = campaign.load_object("ui.tables:Database")(config.store_url)
    people = campaign.load_object("ui.accounts:People")(store)
    name = getattr(arguments, "name", "")
    try:
        if arguments.action == "add":
            made = people.add(name, arguments.role, _password())
            _print(f"{made.name}: {made.role}, {made.pseudonym} in labels and exports")
        elif arguments.action == "password":
            people.set_password(name, _password())
            _print(f"{name}: new password; signed out everywhere")
        elif arguments.action == "disable":
            people.disable(name)
            _print(f"{name}: disabled and signed out; their labels stay")
        elif arguments.action == "enable":
            people.enable(name)
            _print(f"{name}: may sign in again")
        elif arguments.action == "invite":
            link = campaign.load_object("ui.entry:invite_url")(
                arguments.url, people.invite(arguments.role, arguments.days)
            )
            _print(f"{link}\nfor one person, as {arguments.role}, within {arguments.days:g} days; not shown again")
        elif arguments.action == "invitations":
            if not (open_ones := people.invitations()):
                print("no invitation is open", file=sys.stderr)
            for one in open_ones:
                _print(f"{one.id}  {one.role:<9}  until {one.expires_utc}")
        elif arguments.action == "withdraw":
            one = people.withdraw(arguments.invitation)
            _print(f"{one.id}: withdrawn; its link makes no account any more")
        else:
            if not (everybody := people.accounts()):
                nobody = (
                    "no accounts: the pages are for the person at this machine. `trueup accounts add NAME` makes one"
                )
                _print(nobody, file=sys.stderr)
            for row in everybody:
                state = "" if row.active else "  disabled"
                _print(f"{row.pseudonym}  {row.role:<9}  since {row.created_utc[:10]}  {row.name}{state}")
    finally:
        store.close()
    return 0


def _password() -> str:
    """Asked for twice at a terminal; from a pipe, the first line. Never an argument: those are in process lists."""
    from getpass import getpass

    from trueup.errors import TrueupError

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass("Password: ")
    if getpass("Again: ") != password:
        raise TrueupError("the two passwords differ; nothing was changed")
    return password


def _labels(arguments: argparse.Namespace) -> int:
    from trueup import campaign

    config: Any = _campaign(arguments).stages["label"]
    passed = True
    if arguments.action == "import":
        import_labels = campaign.load_object("ui.exchange:import_labels")
        said = import_labels(config, arguments.file, arguments.on_bad_rows, arguments.ignore_columns)
    elif arguments.action == "export":
        export = campaign.load_object("ui.exchange:export_labels")
        said = export(config, arguments.to, arguments.format, arguments.rankings)
    elif arguments.action == "stats":
        said = campaign.load_object("ui.statistics_text:stats")(config)
    elif arguments.action == "promote":
        said = campaign.load_object("ui.votes:promote")(config)
    elif arguments.action == "blindcheck":
        said, passed = campaign.load_object("ui.blindcheck:blindcheck")(config, browser=arguments.browser)
    else:
        said = campaign.load_object("ui.exchange:backup")(config, arguments.to)
    _print(said)
    return 0 if passed else 1
