"""The commands about people, labels and pages: `trueup label`, `serve`, `accounts` and `labels`.

`--help` loads this module, so each function imports what it needs; no command but those that serve pages needs gradio.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from trueup.commandline.commands import (
    FIRST_UNFINISHED,
    Command,
    described,
    named_rows,
    print_text,
    read_campaign,
    takes_config,
    takes_round,
    takes_run,
)

if TYPE_CHECKING:
    from ui.labels.config import LabelConfig
    from ui.people.accounts import People


def _label_config(arguments: argparse.Namespace) -> LabelConfig:
    from ui.labels.config import LabelConfig

    config = read_campaign(arguments).at_work("label")
    assert isinstance(config, LabelConfig)
    return config


def _actions(parser: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    """A function that adds an action of a command, by its name and what it does; each takes the campaign file."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)

    def add(name: str, does: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, **described(does))
        takes_config(action)
        return action

    return add


# ---- Pages ------------------------------------------------------------------------------------------------------


def _takes_label(parser: argparse.ArgumentParser) -> None:
    takes_config(parser)
    takes_round(parser, FIRST_UNFINISHED)
    _takes_address(parser)


def _label(arguments: argparse.Namespace) -> int:
    from ui.label.sampling import sampling_for
    from ui.labels.config import LabelConfig

    campaign = read_campaign(arguments)
    config = campaign.at_work("label", arguments.round)
    assert isinstance(config, LabelConfig)
    sampling = sampling_for(campaign, config)
    with sampling or nullcontext():  # before the pages are loaded, which takes a while
        from ui.app import serve_label

        serve_label(config, sampling, **_address(arguments))
    return 0


def _takes_serve(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    parser.add_argument(
        "--trust",
        action="store_true",
        help="the run is your own: open the database that its config names, and run Python that comes with its model "
        "where the config allows it (trust_remote_code). Without this a run is data",
    )
    takes_round(parser, "without it the last that was compared")
    _takes_address(parser)


def _serve(arguments: argparse.Namespace) -> int:
    from ui.app import serve_run

    serve_run(arguments.run, **_address(arguments), trust=arguments.trust, number=arguments.round)
    return 0


def _takes_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind; another than this machine's own needs accounts"
    )
    parser.add_argument("--port", type=int, default=7860, help="port; 0 takes a free one")
    parser.add_argument(
        "--url",
        help="scheme and host that people open, if a proxy stands in front: https://label.example.org (needs accounts)",
    )
    parser.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address or network of that proxy, whose X-Forwarded-For then counts: 127.0.0.1 (may be repeated)",
    )


class _Address(TypedDict):
    host: str
    port: int
    url: str | None
    proxies: list[str]


def _address(arguments: argparse.Namespace) -> _Address:
    return {"host": arguments.host, "port": arguments.port, "url": arguments.url, "proxies": arguments.proxy}


# ---- People -----------------------------------------------------------------------------------------------------


def _takes_accounts(parser: argparse.ArgumentParser) -> None:
    action = _actions(parser)
    secret = "the password is asked for, or read from the first line of standard input"
    for name, does in {
        "add": f"add an account; {secret}",
        "password": f"give an account a new password, and sign it out everywhere; {secret}",
        "disable": "disable an account from this moment; its labels stay",
        "enable": "enable a disabled account again",
    }.items():
        one = action(name, does)
        one.add_argument("name", help="name to sign in with; labels never carry it")
        if name == "add":
            _takes_role(one)
    invite = action("invite", "make a link for one person to create an account")
    _takes_role(invite)
    invite.add_argument("--days", type=float, default=7, help="days that the link is good for (7)")
    invite.add_argument(
        "--url", default="http://127.0.0.1:7860", help="scheme and host at which people reach the pages"
    )
    action("invitations", "list the open invitations")
    withdraw = action("withdraw", "cancel an open invitation")
    withdraw.add_argument("invitation", help="its id, or the beginning of it, as `invitations` lists it")
    action("list", "list accounts: names, pseudonyms, roles")


def _takes_role(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--role",
        choices=("annotator", "admin"),
        default="annotator",
        help="an annotator labels and sees no results; an admin sees everything (annotator)",
    )


def _accounts(arguments: argparse.Namespace) -> int:
    config = _label_config(arguments)
    from ui.labels.tables import Database
    from ui.people.accounts import People

    store = Database(config.store_url)
    try:
        _ON_PEOPLE[arguments.action](People(store), arguments)
    finally:
        store.close()
    return 0


def _add(people: People, arguments: argparse.Namespace) -> None:
    person = people.add(arguments.name, arguments.role, _password())
    print_text(f"{person.name}: {person.role}, {person.pseudonym} in labels and exports")


def _set_password(people: People, arguments: argparse.Namespace) -> None:
    people.set_password(arguments.name, _password())
    print_text(f"{arguments.name}: new password; signed out everywhere")


def _disable(people: People, arguments: argparse.Namespace) -> None:
    people.disable(arguments.name)
    print_text(f"{arguments.name}: disabled and signed out; their labels stay")


def _enable(people: People, arguments: argparse.Namespace) -> None:
    people.enable(arguments.name)
    print_text(f"{arguments.name}: may sign in again")


def _invite(people: People, arguments: argparse.Namespace) -> None:
    from ui.people.sign_in import invite_url

    link = invite_url(arguments.url, people.invite(arguments.role, arguments.days))
    print_text(f"{link}\nfor one person, as {arguments.role}, within {arguments.days:g} days; not shown again")


def _list_invitations(people: People, arguments: argparse.Namespace) -> None:
    if not (invitations := people.invitations()):
        print("no invitation is open", file=sys.stderr)
    for invitation in invitations:
        print_text(f"{invitation.id}  {invitation.role:<9}  until {invitation.expires_utc}")


def _withdraw(people: People, arguments: argparse.Namespace) -> None:
    invitation = people.withdraw(arguments.invitation)
    print_text(f"{invitation.id}: withdrawn; its link makes no account any more")


def _list(people: People, arguments: argparse.Namespace) -> None:
    if not (accounts := people.accounts()):
        nobody = "no accounts: the pages are for the person at this machine. `trueup accounts add NAME` creates one"
        print_text(nobody, file=sys.stderr)
    for account in accounts:
        state = "" if account.active else "  disabled"
        print_text(f"{account.pseudonym}  {account.role:<9}  since {account.created_utc[:10]}  {account.name}{state}")


_ON_PEOPLE: dict[str, Callable[[People, argparse.Namespace], None]] = {
    "add": _add,
    "password": _set_password,
    "disable": _disable,
    "enable": _enable,
    "invite": _invite,
    "invitations": _list_invitations,
    "withdraw": _withdraw,
    "list": _list,
}


def _password() -> str:
    """The password, typed twice at a terminal, or the first line of a pipe. It is never an argument, since process
    lists show those."""
    from getpass import getpass

    from trueup.errors import TrueupError

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass("Password: ")
    if getpass("Again: ") != password:
        raise TrueupError("the two passwords differ; nothing was changed")
    return password


# ---- Labels -----------------------------------------------------------------------------------------------------


def _takes_labels(parser: argparse.ArgumentParser) -> None:
    action = _actions(parser)
    file = action("import", "put the preferences of a file into the campaign's store")
    file.add_argument(
        "file", type=Path, help="preferences (docs/formats.md): a file, a folder, a pattern, a hub data set"
    )
    file.add_argument(
        "--on-bad-rows", choices=("refuse", "drop"), help="what happens to a file with bad rows (label.on_bad_rows)"
    )
    file.add_argument(
        "--ignore-columns",
        nargs="+",
        metavar="COLUMN",
        help="columns that do not change the meaning of a row; no row is refused for them (label.ignore_columns)",
    )
    export = action("export", "write the current labels with their provenance")
    export.add_argument("to", type=Path, help="new file or folder")
    export.add_argument(
        "--format",
        choices=("jsonl", "datasets"),
        default="jsonl",
        help="TRL's conversational prompt/chosen/rejected as JSON Lines, or as a folder for datasets.load_from_disk",
    )
    export.add_argument(
        "--rankings", choices=("pairs", "whole"), default="pairs", help="rankings as all their pairs, or one a row"
    )
    action("stats", "print the number of labels, people's agreement, and biases that could explain them")
    blind = action("blindcheck", "label a copy of the store, and search what the browser gets for identifiers")
    blind.add_argument("--browser", action="store_true", help="by the keys of a real Chromium, not over HTTP")
    action("promote", "copy the votes on the run's comparison into the campaign's labels")
    backup = action("backup", "copy the store while people label")
    backup.add_argument("to", type=Path, help="file to make")


def _labels(arguments: argparse.Namespace) -> int:
    text, passed = _ON_LABELS[arguments.action](_label_config(arguments), arguments)
    print_text(text)
    return 0 if passed else 1


def _import(config: LabelConfig, arguments: argparse.Namespace) -> tuple[str, bool]:
    from ui.labels.exchange import import_labels

    return import_labels(config, named_rows(arguments.file), arguments.on_bad_rows, arguments.ignore_columns), True


def _export(config: LabelConfig, arguments: argparse.Namespace) -> tuple[str, bool]:
    from ui.labels.exchange import export_labels

    return export_labels(config, arguments.to, arguments.format, arguments.rankings), True


def _stats(config: LabelConfig, arguments: argparse.Namespace) -> tuple[str, bool]:
    from ui.figures.text import stats

    return stats(config), True


def _blindcheck(config: LabelConfig, arguments: argparse.Namespace) -> tuple[str, bool]:
    from ui.blindcheck.run import blindcheck

    return blindcheck(config, browser=arguments.browser)


def _promote(config: LabelConfig, arguments: argparse.Namespace) -> tuple[str, bool]:
    from ui.labels.votes import promote

    return promote(config), True


def _backup(config: LabelConfig, arguments: argparse.Namespace) -> tuple[str, bool]:
    from ui.labels.backup import backup

    return backup(config.store_url, arguments.to), True


_ON_LABELS: dict[str, Callable[[LabelConfig, argparse.Namespace], tuple[str, bool]]] = {
    "import": _import,
    "export": _export,
    "stats": _stats,
    "blindcheck": _blindcheck,
    "promote": _promote,
    "backup": _backup,
}
"""Each action's function, which returns the text to print and whether a check passed."""


COMMANDS = {
    "label": Command(
        "open the labelling page over the campaign's store; answers that people wait for are sampled beside it",
        _takes_label,
        _label,
    ),
    "serve": Command("open the web application over a run: comparison, report, labels", _takes_serve, _serve),
    "accounts": Command("manage the people who may label and administer", _takes_accounts, _accounts),
    "labels": Command("import, export, promote, back up, count and check labels", _takes_labels, _labels),
}
