"""A look at a file of rows: what it is read as, what is wrong with it, and its rows as the model sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from trueup.artifacts.reports import Share
from trueup.campaign import Campaign
from trueup.data.annotators import votes_by_pair
from trueup.data.containers.spool import Spool
from trueup.data.duplicates.exams import on_exams
from trueup.data.duplicates.training import across_split
from trueup.data.formats import ImportedRanking, read_demonstrations, read_preferences, read_prompts
from trueup.data.formats.settling import Use
from trueup.data.pairs import pairs_of
from trueup.data.records import BAD_ROW, Demonstration, Dropped, LeftOut, random_rows
from trueup.data.split import is_heldout
from trueup.data.words import count_words
from trueup.errors import DataError
from trueup.inspecting.against import against
from trueup.inspecting.diversity import COMPARED, diversity, languages
from trueup.inspecting.rendered import Rendered, as_written, spread
from trueup.inspecting.report import BadRows, DataReport, Judgements, Split, Spread
from trueup.inspecting.rows import Rows, answers_of, messages_of, words_asked
from trueup.statistics.intervals import bootstrap_mean
from trueup.statistics.reliability import agreement_of

READERS: dict[Use, Callable[..., Rows]] = {
    "preferences": read_preferences,
    "demonstrations": read_demonstrations,
    "prompts": read_prompts,
}
"""The use that says most comes first."""
RENDERED = 20_000
"""Most rows of a large file that are rendered as the model sees them."""
PLACES = 100
"""Most places that are named of the rows with one problem."""


def inspect(
    path: Path,
    use: Use | None,
    ignore_columns: Sequence[str],
    campaign: Campaign | None,
    samples: int,
    other: Path | None = None,
) -> DataReport:
    """What is in a file of rows. Bad rows are named, and the others are looked at; a DataError if there are no others.

    use       what it is read as; None: that which suits it (`read`)
    campaign  whose model and split are used; None: samples stand as in the file
    samples   rows to show
    other     another version of it, to which the difference is told
    """
    use, rows, dropped = read(path, (use,) if use else tuple(READERS), ignore_columns)
    count = len(rows)
    if campaign and isinstance(rows, Spool):
        rows = list(random_rows(rows, RENDERED, 0))  # what is rendered of a row is known by the row's identity
    is_drawn = len(rows) < count
    rendered = Rendered.by(campaign, use, rows) if campaign else None
    if rendered:
        rows = rendered.rows
    before = read(other, (use,), ignore_columns)[1] if other else None
    if before is not None and not before:
        raise DataError(f"{other}: no row of it can be read as {use}; leave out --against, or name --as")
    compared = min(len(rows), len(before), COMPARED) if before else COMPARED
    report = report_on(str(path), use, rows, dropped, rendered, samples, compared)
    found: dict[str, object] = {"rows": count, "drawn": len(rows)} if is_drawn else {}
    if campaign:
        found["split"] = split_of(rows, dropped, campaign)
    if other and before:
        found["against"] = against(other, before, rows, diversity(before, compared), report.diversity)
    return report.model_copy(update=found)


def report_on(
    path: str, use: Use, rows: Rows, dropped: Dropped, rendered: Rendered | None, samples: int, compared: int = COMPARED
) -> DataReport:
    """The report on rows that were read, without their split and another version.

    dropped   what was left out when they were read
    rendered  the rows in tokens; None: samples stand as in the file
    compared  prompts that are compared with each other
    """
    shown: Rows = random_rows(rows, samples, 0)
    bad = dropped.left_out + (rendered.left_out if rendered else [])
    return DataReport(
        path=path,
        use=use,
        formats=dict(dropped.formats.most_common()),
        rows=len(rows),
        left_out={reason: rows for reason, rows in dropped.counts.items() if not reason.startswith(BAD_ROW)},
        bad_rows=len(bad),
        problems=problems(bad),
        columns_not_read=dropped.most_ignored(100),
        lengths=lengths(rows) | (rendered.lengths if rendered else {}),
        turns=dict(sorted(Counter(sum(one.role == "user" for one in messages_of(row)) for row in rows).items())),
        categories=dict(Counter(row.category for row in rows if row.category).most_common()),
        languages=languages(rows),
        judgements=judgements([row for row in rows if isinstance(row, ImportedRanking)])
        if use == "preferences"
        else None,
        over_max_length=rendered.over if rendered else None,
        overlong=rendered.fitting.overlong if rendered and rendered.fitting and rendered.over else None,
        template=rendered.template if rendered else None,
        diversity=diversity(rows, compared),
        samples=[sample for row in shown for sample in (rendered.samples(row) if rendered else as_written(row))],
    )


def read(path: Path, uses: Sequence[Use], ignore_columns: Sequence[str]) -> tuple[Use, Rows, Dropped]:
    """The file by the first reader that takes half of its rows or more, or else the one that leaves the fewest, with
    what was left out."""
    results: list[tuple[Use, Rows, Dropped]] = []
    problems: dict[str, Use] = {}
    for use in uses:
        dropped = Dropped()
        try:
            rows = READERS[use](path, dropped, "drop", ignore_columns)
        except DataError as error:
            problems.setdefault(str(error), use)
            continue
        results.append((use, rows, dropped))
        if len(rows) >= len(dropped.left_out):
            return results[-1]
    if results:
        return min(results, key=lambda result: len(result[2].left_out))
    if len(problems) == 1:
        raise DataError(*problems)
    raise DataError("\n".join(f"as {use}: {text}" for text, use in problems.items()))


# ---- Figures ----------------------------------------------------------------------------------------------------


def lengths(rows: Rows) -> dict[str, Spread]:
    """In words: what is asked in a row, and each answer."""
    asked = [words_asked(row) for row in rows]
    answers = [count_words(text) for row in rows for text in answers_of(row)]
    return {what: spread(values) for what, values in (("asked, words", asked), ("answer, words", answers)) if values}


def problems(bad: Sequence[LeftOut]) -> list[BadRows]:
    """What is wrong with rows, the most frequent first."""
    places: dict[str, list[str]] = {}
    for row in bad:
        places.setdefault(row.problem, []).append(row.where)
    found = [BadRows(problem=text, rows=len(where), places=where[:PLACES]) for text, where in places.items()]
    return sorted(found, key=lambda one: -one.rows)


def judgements(rows: Sequence[ImportedRanking]) -> Judgements:
    """What preferences say, and how far people agree."""
    pairs = [pair for row in rows for pair in pairs_of(row.ranking())]
    votes = [by_name for by_name in votes_by_pair(pairs).values() if len(by_name) > 1]
    longer: dict[str, list[float]] = {}
    for pair in pairs:
        chosen, rejected = (count_words(text) for text in pair.texts)
        if chosen != rejected:
            longer.setdefault(pair.prompt_id, []).append(float(chosen > rejected))
    share = bootstrap_mean(list(longer.values())) if longer else None
    return Judgements(
        pairs=len(pairs),
        ties=sum(len(row.tiers) == 1 for row in rows),
        annotators=dict(Counter(row.annotator for row in rows).most_common()),
        agreement=sum(map(agreement_of, votes)) / len(votes) if votes else None,
        shared_pairs=len(votes),
        longer_is_better=share
        and Share(
            value=share.value,
            ci_low=share.low,
            ci_high=share.high,
            n=sum(map(len, longer.values())),
            prompts=len(longer),
        ),
        same_text=sum(len(set(pair.texts)) == 1 for pair in pairs),
    )


def split_of(rows: Rows, dropped: Dropped, campaign: Campaign) -> Split:
    split = campaign.config.split
    heldout = sum(is_heldout(messages_of(row), split) for row in rows)
    return Split(
        train=len(rows) - heldout,
        heldout=heldout,
        near_duplicates=across_split(dropped.places, split, dropped.not_placed),
        contamination=_on_exams(rows, campaign),
    )


def _on_exams(rows: Rows, campaign: Campaign) -> str | None:
    """Of a large file some are looked at, as where they are rendered."""
    looked_at = [row for row in random_rows(rows, RENDERED, 0) if isinstance(row, Demonstration)]
    files = getattr(campaign.stages.get("sft"), "checked_files", ())
    return on_exams(looked_at, files, campaign.config.split)
