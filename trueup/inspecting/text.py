"""What `trueup data inspect` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trueup.console import printable
from trueup.data.formats import SHOWN_PROBLEMS
from trueup.data.jsonl import cut
from trueup.inspecting.report import BadRows, DataReport, Judgements, ShownRow, Spread
from trueup.pages.wording import how_many, interval, percent

SHOWN_NAMES = 8
FATES = {"drop": "left out", "cut": "cut there", "split": "split at turns"}
"""What becomes of rows that are too long, by `sft.overlong`."""
LEARNT, PLAIN = "\x1b[32m", "\x1b[0m"
"""What the model learns to write is green on a terminal, and stands between the marks below elsewhere."""
MARKS = ("⟦", "⟧")


def lines(report: DataReport, colour: bool) -> Iterable[str]:
    """The report as lines that are safe to print. `colour`: whether a terminal shows them."""
    yield from map(printable, of_file(report))
    for sample in report.samples:
        yield ""
        yield from shown(sample, colour)


def of_file(report: DataReport) -> Iterable[str]:
    """All but the samples."""
    formats = "; ".join(f"{name} ({rows})" for name, rows in report.formats.items())
    yield f"{report.path}: {how_many(report.rows, one_of(report.use))}"
    yield line("read as", formats)
    if report.left_out:
        yield line("left out", named(report.left_out))
    if report.columns_not_read:
        yield line("not read", f"columns {named(report.columns_not_read)}")
    for what, spread in report.lengths.items():
        yield line(what, in_words(spread))
    if report.over_max_length:
        yield line(
            "too long",
            f"{how_many(report.over_max_length, 'row')} of more than max_length tokens, which are "
            f"{FATES[report.overlong or 'drop']}",
        )
    yield line("turns", ", ".join(f"{rows} of {how_many(turns, 'question')}" for turns, rows in report.turns.items()))
    if report.categories:
        yield line("categories", named(report.categories))
    yield line("languages", named(report.languages) or "no text is long enough to tell")
    if report.judgements:
        yield from of_judgements(report.judgements)
    if report.split:
        yield line("split", f"{report.split.train} to train on, {report.split.heldout} held out")
        if report.split.near_duplicates:
            yield line("", report.split.near_duplicates)
    if report.template:
        yield line("template", report.template)
    if report.problems:
        yield ""
        yield f"{how_many(report.bad_rows, 'row')} cannot be used:"
        yield from (f"  {places(one)}: {cut(one.problem, 300)}" for one in report.problems[:SHOWN_PROBLEMS])
        if len(report.problems) > SHOWN_PROBLEMS:
            yield f"  ... and {len(report.problems) - SHOWN_PROBLEMS} more problems (--json has them)"


def places(bad: BadRows) -> str:
    """The first place by file and line, two more, and how many others there are."""
    first, *others = bad.places
    behind = [place.rpartition(":")[2].strip() for place in others[:2]]
    more = bad.rows - 1 - len(behind)
    return first + (f" (and {', '.join(behind)}{f' and {more} more' if more else ''})" if behind else "")


def of_judgements(found: Judgements) -> Iterable[str]:
    yield line("pairs", f"{found.pairs} with a better answer, {how_many(found.ties, 'tie')}")
    if found.same_text:
        yield line("", f"{how_many(found.same_text, 'pair')} of the same text twice, which teach nothing")
    yield line("annotators", named(found.annotators))
    if found.agreement is not None:
        agree = f"two annotators put a pair in the same order in {percent(found.agreement)} of "
        yield line("agreement", agree + how_many(found.shared_pairs, "pair"))
    if found.longer_is_better:
        yield line("length", f"the longer answer is the better one in {interval(found.longer_is_better)} of pairs")


def shown(sample: ShownRow, colour: bool) -> Iterable[str]:
    before, behind = (LEARNT, PLAIN) if colour else MARKS
    yield printable(f"--- {sample.where}: {sample.title}")
    text = ""
    for part in sample.parts:
        if part.role:
            text += ("\n" if text else "") + f"{part.role}: "
        text += f"{before}{printable(part.content)}{behind}" if part.trained else printable(part.content)
    yield text


def line(name: str, text: str) -> str:
    return f"  {name:<14} {text}"


def in_words(spread: Spread) -> str:
    return f"{spread.median:.0f} in the middle, 95 % up to {spread.p95:.0f}, at most {spread.largest:.0f}"


def named(counts: Mapping[str, int]) -> str:
    """`en 12, de 3 and 4 more`"""
    first = list(counts.items())[:SHOWN_NAMES]
    more = len(counts) - len(first)
    return ", ".join(f"{name} {count}" for name, count in first) + (f" and {more} more" if more else "")


def one_of(use: str) -> str:
    return use.removesuffix("s")
