"""The parts of a command, whichever package it is in. This module imports little, since `--help` loads it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypedDict

from trueup.stages import ROUNDS

if TYPE_CHECKING:
    from trueup.campaign import Campaign


@dataclass(frozen=True)
class Command:
    """A command of `trueup`."""

    does: str
    """One line for the help text, in lower case and without a full stop."""
    takes: Callable[[argparse.ArgumentParser], None]
    """Adds the arguments. It must import nothing that costs time."""
    run: Callable[[argparse.Namespace], int]
    """Does the command, and returns the exit code."""


class Description(TypedDict):
    help: str
    description: str


def described(does: str) -> Description:
    """The keywords of argparse for a parser's help and description."""
    return {"help": does, "description": does[0].upper() + does[1:] + "."}


def takes_config(parser: argparse.ArgumentParser) -> None:
    """Add the campaign file and `--set`; `read_campaign` reads them."""
    parser.add_argument("config", type=Path, help="campaign file, such as configs/demo.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key: sample.temperature=1"
    )


def takes_round(parser: argparse.ArgumentParser, default: str) -> None:
    text = f"the round, in a campaign of several; {default}"
    parser.add_argument("--round", type=_round, metavar="N", help=text)


def _round(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= ROUNDS:
        raise argparse.ArgumentTypeError(f"expected a round, 1 to {ROUNDS} (found {text!r})")
    return int(text)


FIRST_UNFINISHED = "without it the first in which the stage is not finished, or else the last"


def takes_rows(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `file`, which `named_rows` reads, and `--ignore-columns`."""
    parser.add_argument("file", type=Path, help=f"{what} in a file, folder, pattern or hub data set (docs/formats.md)")
    parser.add_argument(
        "--ignore-columns",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns that do not change the meaning of a row; no row is refused for them",
    )


def takes_bad_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on-bad-rows", choices=("refuse", "drop"), default="refuse", help="drop leaves out bad rows")


def takes_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run directory, such as runs/demo")


def read_campaign(arguments: argparse.Namespace) -> Campaign:
    """The campaign that the arguments of `takes_config` name."""
    from trueup.campaign import load_campaign

    return load_campaign(arguments.config, arguments.set)


def named_rows(path: Path) -> Path:
    """The path of what a command names: on this machine, a web address, or a hub data set, which is fetched."""
    from trueup.errors import DataError
    from trueup.provenance.inputs import elsewhere, hub_id_of

    try:
        path = elsewhere(str(path), Path()) or path
    except ValueError as error:
        raise DataError(str(error)) from None
    if (hub_id := hub_id_of(path)) is None:
        return path
    from trueup.models.sources import hub

    return elsewhere(hub_id.at(hub.fetch(hub_id).name).revision_text, Path()) or path


def print_text(text: object, file: IO[str] | None = None) -> None:
    """Print text that may contain other people's: file names, answers, notes."""
    from trueup.console import printable

    print(printable(str(text)), file=file)
