"""The commands about reward models outside of a campaign: `trueup reward score` and `trueup reward eval`.

`--help` loads this module, so each function imports what it needs.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from trueup.commandline.commands import Command, named_rows, print_text, takes_bad_rows, takes_rows

if TYPE_CHECKING:
    from reward.elsewhere import ScoredFile


def _takes_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="model with one output: a folder, such as runs/demo/reward/model, or a hub id")
    takes_rows(parser, "preferences")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of `model` in a campaign file: revision=main, chat_template=llama3, dtype=float32",
    )
    takes_bad_rows(parser)


def _takes_score(parser: argparse.ArgumentParser) -> None:
    _takes_file(parser)
    parser.add_argument("--to", type=Path, help="new file for the scores (standard output)")


def _takes_eval(parser: argparse.ArgumentParser) -> None:
    _takes_file(parser)
    parser.add_argument("--json", type=Path, help="new file for all figures")


def _scored(arguments: argparse.Namespace) -> ScoredFile:
    """The file with its scores. What is said meanwhile goes to standard error, which leaves the results alone."""
    from reward.elsewhere import load_model, score_file

    with redirect_stdout(sys.stderr):
        arguments.file = named_rows(arguments.file)
        model = load_model(arguments.model, arguments.set)
        return score_file(model, arguments.file, arguments.on_bad_rows, arguments.ignore_columns)


def _score(arguments: argparse.Namespace) -> int:
    from trueup.errors import require_new, writing

    require_new(arguments.to)
    file = _scored(arguments)
    from reward.elsewhere import answer_scores
    from trueup.data.records import write_rows

    rows = answer_scores(file)
    if arguments.to is None:
        for row in rows:
            print_text(row.model_dump_json())
    else:
        with writing(arguments.to):
            write_rows(arguments.to, rows)
    left_out = f"; left out: {file.dropped}" if file.dropped.counts else ""
    print_text(f"{len(rows)} answers of {len(file.rows)} rows scored{left_out}", file=sys.stderr)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from trueup.errors import require_new, writing

    require_new(arguments.json)
    file = _scored(arguments)
    from reward.elsewhere import evaluate, report_text
    from trueup.files import write_atomically

    report = evaluate(file, arguments.model, arguments.file)
    print_text(report_text(report))
    if arguments.json is not None:
        with writing(arguments.json):
            write_atomically(arguments.json, report.text())
    return 0


COMMANDS = {
    "reward score": Command("score every answer of a file by a reward model", _takes_score, _score),
    "reward eval": Command("measure a reward model on the preferences of a file", _takes_eval, _eval),
}
