"""What a stage read, as `trueup data inspect` shows a file: figures and a page in its folder.

The stage writes them from the rows that it has read, in seconds and before it trains, so that the page is there when
the file that the rows came from is gone. An interrupted stage that goes on has them already, of the same inputs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.data.formats.settling import Use
from trueup.data.records import Dropped, LeftOut
from trueup.files import write_atomically
from trueup.inspecting.look import report_on
from trueup.inspecting.page import page_of
from trueup.inspecting.rendered import Rendered
from trueup.inspecting.report import SourceRows, Split
from trueup.models.templates.ends import choice_of
from trueup.runs import DATA_PAGE, DATA_REPORT, StageRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trueup.models.chat import Encoded

DRAWN = 1_000
"""Most rows that the figures are of: of 5,000 they take ten seconds of a processor."""
SAMPLES = 6
"""Rows that the page shows."""
ReadRow = tuple[Any, "list[Encoded]"]
"""A row and its sequences of tokens."""


@dataclass(frozen=True)
class ReadSource:
    """What a stage read of one of its sources. It keeps no row but those that are bad."""

    path: Path
    rows: int
    """Rows that are used."""
    counts: Counter[str]
    ignored: Counter[str]
    formats: Counter[str]
    left_out: list[LeftOut]

    @classmethod
    def of(cls, path: Path, rows: int, dropped: Dropped) -> ReadSource:
        return cls(path, rows, dropped.counts, dropped.ignored, dropped.formats, dropped.left_out)


def write_data_page(
    stage: StageRun,
    use: Use,
    sources: Sequence[ReadSource],
    train: Sequence[ReadRow],
    heldout: Sequence[ReadRow],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write data.json and data.html of the rows that a stage uses, unless they are there.

    train, heldout  rows with their tokens, asked for one by one: of many some are drawn, and all are counted
    tokenizer       with the chat template that made the tokens
    """
    if stage.resumed and (stage.dir / DATA_PAGE).is_file():
        return
    count = len(train) + len(heldout)
    drawn = random.Random(0).sample(range(count), min(count, DRAWN))
    rows, encoded = [], {}
    for i in sorted(drawn):
        row, many = train[i] if i < len(train) else heldout[i - len(train)]
        title = use.removesuffix("s") + (", held out" if i >= len(train) else "")
        rows.append(row)
        encoded[id(row)] = titled(title, many)
    rendered = Rendered(
        tokenizer=tokenizer,
        template=choice_of(tokenizer) or "as the model has it",
        rows=rows,
        encoded=encoded,
        left_out=[],
        over=None,  # they are counted with what was left out
        fitting=None,
    )
    report = report_on(f"data of {stage.config.stage}", use, rows, together(sources), rendered, SAMPLES)
    report = report.model_copy(
        update={
            "rows": count,
            "drawn": len(rows) if len(rows) < count else None,
            "split": Split(train=len(train), heldout=len(heldout), near_duplicates=None),
            "sources": [
                SourceRows(
                    path=str(one.path),
                    rows=one.rows,
                    formats=dict(one.formats.most_common()),
                    left_out=dict(one.counts),
                )
                for one in sources
            ],
        }
    )
    write_atomically(stage.dir / DATA_REPORT, report.text())
    write_atomically(stage.dir / DATA_PAGE, page_of(report))


def titled(title: str, many: Sequence[Encoded]) -> list[tuple[str, Encoded]]:
    """The sequences of a row, each with what it is."""
    if len(many) == 1:
        return [(title, many[0])]
    return [(f"{title}, part {number} of {len(many)}", one) for number, one in enumerate(many, start=1)]


def together(sources: Sequence[ReadSource]) -> Dropped:
    """What was left out of all sources."""
    dropped = Dropped()
    for one in sources:
        dropped.counts.update(one.counts)
        dropped.ignored.update(one.ignored)
        dropped.formats.update(one.formats)
        dropped.left_out += one.left_out
    return dropped
