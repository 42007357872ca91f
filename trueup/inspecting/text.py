"""What `trueup data inspect` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trueup.console import printable
from trueup.data.formats import SHOWN_PROBLEMS
from trueup.data.jsonl import cut
from trueup.inspecting.diversity import NEAR
from trueup.inspecting.report import (
    Against,
    BadRows,
    DataReport,
    Diversity,
    FiledText,
    Judgements,
    Kinds,
    Moved,
    Neighbours,
    ShownRow,
    Spread,
)
from trueup.pages.wording import decimals, how_many, interval, percent, title

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
    if report.drawn:
        yield line("looked at", f"{report.drawn} of them, drawn at random: the figures below are of these")
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
    if report.turns:
        turns = (f"{rows} of {how_many(number, 'question')}" for number, rows in report.turns.items())
        yield line("turns", ", ".join(turns))
    if report.categories:
        yield line("categories", named(report.categories))
    if report.diversity.rows:
        yield line("languages", named(report.languages) or "no text is long enough to tell")
        yield from of_diversity(report.diversity)
    if report.judgements:
        yield from of_judgements(report.judgements)
    if report.split:
        yield line("split", f"{report.split.train} to train on, {report.split.heldout} held out")
        if report.split.near_duplicates:
            yield line("", report.split.near_duplicates)
        if report.split.contamination:
            yield line("", report.split.contamination)
    if report.template:
        yield line("template", report.template)
    if report.against:
        yield ""
        yield from of_difference(report.against)
    if report.problems:
        yield ""
        yield f"{how_many(report.bad_rows, 'row')} cannot be used:"
        yield from (f"  {places(one)}: {cut(one.problem, 300)}" for one in report.problems[:SHOWN_PROBLEMS])
        if len(report.problems) > SHOWN_PROBLEMS:
            yield f"  ... and {len(report.problems) - SHOWN_PROBLEMS} more problems (--json has them)"


def of_diversity(found: Diversity) -> Iterable[str]:
    if len(found.files) > 1:
        yield line("files", named(found.files))
    yield line("kinds", named({title(kind): rows for kind, rows in found.kinds.rows.items()}, number=9))
    yield line("", how_told(found.kinds, found.rows))
    if found.instructions.rows:
        yield line("instructions", f"{named(phrases(found))}; {how_many(found.instructions.pairs, 'different pair')}")
    for what, words in found.vocabulary.items():
        yield line(
            "vocabulary",
            f"of 1,000 words {what}, {percent(words.type_token)} are different, and {percent(words.distinct_2)} of "
            "the pairs of neighbours",
        )
    if found.neighbours:
        yield line("neighbours", in_neighbours(found.neighbours))
        for pair in found.neighbours.closest[:1]:
            yield line("", f"closest ({pair.alike:.2f}): {beginning(pair.first)} and {beginning(pair.second)}")


def beginning(place: FiledText) -> str:
    return f"{place.where} '{cut(place.content, 80)}'"


def how_told(kinds: Kinds, rows: int) -> str:
    """Where the kinds come from, and what that is worth."""
    told = rows - kinds.by_category
    parts = [f"{kinds.by_category} by their own category"] if kinds.by_category else []
    parts += [f"{told} by cue words, which are English"] if told else []
    sentence = ", ".join(parts)
    if kinds.agreement:
        agree = f"the cue words name the kind that the category does in {interval(kinds.agreement)} of rows"
        return f"{sentence}; {agree}"
    return f"{sentence}; no category says how often they are right"


def phrases(found: Diversity) -> dict[str, int]:
    """The verbs and objects of instructions, the most frequent first."""
    pairs = {f"{one.verb} {noun}": rows for one in found.instructions.verbs for noun, rows in one.nouns.items()}
    return dict(sorted(pairs.items(), key=lambda one: -one[1]))


def in_neighbours(found: Neighbours) -> str:
    return (
        f"{percent(found.near)} of {how_many(found.rows, 'prompt')} have one that is alike by {NEAR} or more; "
        f"{found.median:.2f} in the middle"
    )


def of_difference(found: Against) -> Iterable[str]:
    yield f"against {found.path}, {how_many(found.rows, 'row')}:"
    yield line("added", how_many(found.added, "row") + answered_anew(found))
    yield line("removed", how_many(found.removed, "row"))
    for one in found.figures:
        if one.before != one.after:
            yield line("moved", f"{one.name}: {figure(one, one.before)} -> {figure(one, one.after)}")


def answered_anew(found: Against) -> str:
    return f", {found.same_prompt} of them another answer to a prompt of it" if found.same_prompt else ""


def figure(one: Moved, value: float | None) -> str:
    if value is None:
        return "too few to tell"
    return percent(value) if one.share else f"{value:,.0f}" if float(value).is_integer() else decimals(value, 2)


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


def named(counts: Mapping[str, int], number: int = SHOWN_NAMES) -> str:
    """`en 12, de 3 and 4 more`"""
    first = list(counts.items())[:number]
    more = len(counts) - len(first)
    return ", ".join(f"{name} {count}" for name, count in first) + (f" and {more} more" if more else "")


def one_of(use: str) -> str:
    return use.removesuffix("s")
