"""The commands about files of rows: `trueup data inspect` and `trueup data convert`.

`--help` loads this module, so each function imports what it needs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trueup.commandline.commands import Command, named_rows, print_text, takes_bad_rows, takes_rows

USES = ("demonstrations", "prompts", "preferences")
SHAPES = ("messages", "alpaca", "sharegpt", "preference", "kto")


def _takes_inspect(parser: argparse.ArgumentParser) -> None:
    takes_rows(parser, "rows")
    parser.add_argument("--as", choices=USES, dest="use", help="what the rows are, where they can be several things")
    parser.add_argument(
        "--config", type=Path, help="campaign file: its model renders the rows, and its split and max_length are told"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the campaign file"
    )
    parser.add_argument(
        "--against", type=Path, metavar="OTHER", help="another version of the rows: what came, what went, what moved"
    )
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="rows to show (3)")
    parser.add_argument("--html", type=Path, help="new file for the page")
    parser.add_argument("--json", type=Path, help="new file for all figures")


def _takes_convert(parser: argparse.ArgumentParser) -> None:
    takes_rows(parser, "rows")
    parser.add_argument("target", type=Path, help="new file: .jsonl, .json, .csv or .parquet")
    parser.add_argument("--to", choices=SHAPES, required=True, help="the shape of its rows")
    takes_bad_rows(parser)


def _inspect(arguments: argparse.Namespace) -> int:
    from trueup.campaign import load_campaign
    from trueup.errors import require_new, writing
    from trueup.files import write_atomically
    from trueup.inspecting.look import inspect
    from trueup.inspecting.page import page_of
    from trueup.inspecting.text import lines

    for target in (arguments.html, arguments.json):
        require_new(target)
    campaign = load_campaign(arguments.config, arguments.set) if arguments.config else None
    path = named_rows(arguments.file)
    other = named_rows(arguments.against) if arguments.against else None
    report = inspect(path, arguments.use, arguments.ignore_columns, campaign, max(0, arguments.samples), other)
    for line in lines(report, colour=sys.stdout.isatty()):
        print(line)  # of which the texts are printable
    if arguments.json is not None:
        with writing(arguments.json):
            write_atomically(arguments.json, report.text())
    if arguments.html is not None:
        with writing(arguments.html):
            write_atomically(arguments.html, page_of(report))
    return 1 if report.bad_rows else 0


def _convert(arguments: argparse.Namespace) -> int:
    from trueup.inspecting.convert import convert

    rows, dropped = convert(
        named_rows(arguments.file), arguments.target, arguments.to, arguments.on_bad_rows, arguments.ignore_columns
    )
    left_out = f"; left out: {dropped}" if dropped.counts else ""
    print_text(f"{arguments.target}: {rows} rows as {arguments.to}{left_out}")
    return 0


COMMANDS = {
    "data inspect": Command(
        "print what is in a file of rows: formats, bad rows, how varied it is, judgements, rows as a model sees them",
        _takes_inspect,
        _inspect,
    ),
    "data convert": Command("write the rows of a file in another shape", _takes_convert, _convert),
}
