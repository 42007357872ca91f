"""From a file to rows: recognise, convert, settle what was not read, and say what is wrong with what."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from trueup.console import say
from trueup.data.containers.choice import Choice
from trueup.data.containers.reading import read_entries
from trueup.data.containers.spool import Seen, draw, is_large, spooled
from trueup.data.formats import oasst, settling, vocabulary
from trueup.data.formats.columns import Columns, Ledger, Values
from trueup.data.formats.demonstrations import DEMONSTRATIONS, PROMPTS
from trueup.data.formats.format import OF_AN_ANSWER, Format, ImportedRanking, Skipped, is_own, who_and_why
from trueup.data.formats.preferences import PREFERENCES, is_rating, join_ratings
from trueup.data.formats.settling import Use
from trueup.data.formats.verdicts import tiers_of_scores
from trueup.data.jsonl import Entry, Unreadable, cut, excerpt
from trueup.data.records import Demonstration, Dropped, Prompt, Row, parse_row
from trueup.data.row_rules import BadRows
from trueup.data.split import question
from trueup.data.tools import are_written, read_tools
from trueup.errors import DataError
from trueup.provenance.inputs import files_of, not_read

SHOWN_PROBLEMS = 20
LONGEST_PROBLEM = 400
"""Characters of one problem: an error is read by people, and the texts of a row stay in its file."""
MOST_PLACES = 200_000
"""First questions whose places are kept, for what is said of near-duplicates."""

R = TypeVar("R", bound=Row)


def read_demonstrations(
    path: Path,
    dropped: Dropped,
    on_bad_rows: BadRows = "refuse",
    ignore_columns: Collection[str] = (),
    choice: Choice | None = None,
) -> Sequence[Demonstration]:
    """All conversations of a file. Duplicates, empty reference outputs and answers marked as bad are dropped, and
    counted."""
    return _read_rows(path, "demonstrations", Demonstration, on_bad_rows, ignore_columns, choice, dropped)


def read_prompts(
    path: Path,
    dropped: Dropped,
    on_bad_rows: BadRows = "refuse",
    ignore_columns: Collection[str] = (),
    choice: Choice | None = None,
) -> Sequence[Prompt]:
    """All prompts of a file; of demonstrations, the conversation up to the last user turn. Duplicates are dropped."""
    return _read_rows(path, "prompts", Prompt, on_bad_rows, ignore_columns, choice, dropped)


def read_preferences(
    path: Path,
    dropped: Dropped,
    on_bad_rows: BadRows = "refuse",
    ignore_columns: Collection[str] = (),
    choice: Choice | None = None,
) -> list[ImportedRanking]:
    """All rankings of a file, one for each annotator of a row.

    Everything that was said stays: ties, verdicts given twice, answers that are empty or the same. Pairs that Trueup
    made of a ranking become that ranking again.
    """
    rows = _read_rows(path, "preferences", ImportedRanking, on_bad_rows, ignore_columns, choice, dropped)
    return _join_labels(rows, dropped)


class _UnknownFormat(ValueError):
    """No converter takes a row with these columns."""


def _read_rows(
    path: Path,
    use: Use,
    schema: type[R],
    on_bad_rows: BadRows,
    ignore_columns: Collection[str],
    choice: Choice | None,
    dropped: Dropped,
) -> Sequence[R]:
    """The rows that a section takes of a file. Those of a large one lie on disk, but for preferences, which go into a
    database or a report whole."""
    choice = choice or Choice()
    if others := not_read(path):
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        say(f"{'data':<12} {path}: {len(others)} files hold no rows, by their names: {', '.join(others[:5])}{more}")

    def read(dropped: Dropped) -> Iterator[R]:
        return _rows(path, use, schema, on_bad_rows, ignore_columns, choice, dropped)

    rows: Sequence[R]
    if use != "preferences" and is_large(path):
        rules = [use, on_bad_rows, sorted(ignore_columns), choice.columns, choice.conditions, choice.ignored]
        rows = spooled(path, schema, rules, dropped, read)
    else:
        rows = list(read(dropped))
    drawn = draw(rows, choice.most, choice.seed)
    dropped.add("over max_rows", len(rows) - len(drawn))
    return drawn


def _rows(
    path: Path,
    use: Use,
    schema: type[R],
    on_bad_rows: BadRows,
    ignore_columns: Collection[str],
    choice: Choice,
    dropped: Dropped,
) -> Iterator[R]:
    """The rows of a file that can be read, each once. At its end a DataError for the others, if they are refused."""
    formats, finish = _USES[use]
    seen, count, problems, is_unknown, is_empty, rows = Seen(), 0, list[str](), False, True, 0
    dropped.places = places = dict(dropped.places)
    ignore = frozenset(map(vocabulary.canonical, ignore_columns))
    ours = set(map(vocabulary.canonical, choice.columns))  # a file's own column of such a name is left out before
    for file, where, entry in _entries(path, use, ignore, choice, dropped):
        is_empty = False
        ledger = Ledger(ignore - ours, with_tools=use == "demonstrations")
        try:
            outcomes = [
                values if isinstance(values, Skipped) else finish(values, where)
                for values in _convert(entry, file, use, ledger)
            ]
        except (DataError, ValueError, RecursionError) as error:
            problem = (
                "nested too deeply" if isinstance(error, RecursionError) else str(error).removeprefix(f"{where}: ")
            )
            count += 1
            is_unknown = is_unknown or isinstance(error, _UnknownFormat)
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(f"{where}: {cut(problem, LONGEST_PROBLEM)}")
            if on_bad_rows == "drop":
                dropped.leave_out(where, problem, entry)
            continue
        dropped.ignored.update(ledger.ignored)
        dropped.formats[ledger.format] += 1
        for row in outcomes:
            if isinstance(row, Skipped):
                dropped.add(row.reason)
            elif (identity := _identity(row)) is not None and not seen.add(identity):
                dropped.add("duplicate")
            else:
                rows += 1
                if isinstance(row, Prompt | Demonstration):
                    first = question(row.prompt if isinstance(row, Prompt) else row.messages)
                    if len(places) < MOST_PLACES:
                        places.setdefault(first, where)
                    dropped.not_placed += first not in places
                yield row
    if sentence := choice.unknown():
        raise DataError(f"{path}: {sentence}")
    if is_empty and dropped.counts:
        raise DataError(f"{path}: no row meets the conditions ({dropped}); correct `filter`")
    if is_empty:
        raise DataError(f"{path}: holds no rows")
    if problems and (on_bad_rows == "refuse" or not rows):
        raise _refused(path, count, problems, formats if is_unknown else [])


def _refused(path: Path, count: int, problems: list[str], formats: Sequence[Format]) -> DataError:
    """The error that names the first of `count` problems, and the formats that there are if a row fits none."""
    lines = [f"{path}: {count} problems"] if count > 1 else []
    lines += problems
    lines += [f"... and {count - len(problems)} more"] if count > len(problems) else []
    lines.append("mend these rows, or leave them out with on_bad_rows: drop")
    if formats:
        format_columns = (f"{', '.join(_few(format.keys))} ({format.name})" for format in formats)
        lines.append(
            f"rows are recognised by their columns: {'; '.join(format_columns)} (docs/formats.md has all names)"
        )
    return DataError("\n  ".join(lines))


def _few(keys: Iterable[str]) -> list[str]:
    return [" or ".join(names[:3]) + (" or ..." if len(names) > 3 else "") for names in (k.split("|") for k in keys)]


def _entries(
    path: Path, use: Use, ignore: Collection[str], choice: Choice, dropped: Dropped
) -> Iterator[tuple[Path, str, Any]]:
    """The chosen rows of all files that a path stands for, each with its file and where it stands.

    Rows that belong together are one, and come last, since the last row of a file may belong to its first.
    """

    def leave(name: str) -> bool:
        return vocabulary.canonical(name) in ignore and name not in choice.needed

    parts: list[Entry] = []
    file_of: dict[str, Path] = {}
    for file in files_of(path):
        for where, entry in read_entries(file, leave):
            if isinstance(entry, dict):
                if reason := choice.why_left_out(entry):
                    dropped.add(reason)
                    continue
                try:
                    entry = choice.renamed(entry)
                except ValueError as error:
                    entry = Unreadable(str(error), json.dumps(entry, ensure_ascii=False))
            if oasst.is_message(entry) or (use == "preferences" and is_rating(entry)):
                parts.append((where, entry))
                file_of[where] = file
            else:
                yield file, where, entry
    parts = oasst.trees(parts)
    for where, entry in join_ratings(parts) if use == "preferences" else parts:
        yield file_of[where], where, entry


def _convert(row: Any, path: Path, use: Use, ledger: Ledger) -> list[Values | Skipped]:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {excerpt(row)}")
    one = Columns(row, ledger)
    one.refuse_unsupported(vocabulary.TOOLS)
    format = _recognise(one, use)
    at = ", ".join(one.at(name) for name in _recognised_by(one, format))
    ledger.format = f"{format.name}: {at}"
    common = _common_columns(one, use) | {"at": at}
    if reason := settling.why_left_out(one, use):
        return [Skipped(reason)]
    outcomes = [values if isinstance(values, Skipped) else common | values for values in format.convert(one, path)]
    texts = [text for values in outcomes if not isinstance(values, Skipped) for text in _texts_of(values)]
    if texts or not outcomes:
        settling.settle(ledger, texts, use)
    return outcomes


@lru_cache
def _names(keys: str) -> tuple[str, ...]:
    return tuple(keys.split("|"))


@lru_cache(maxsize=10_000)
def _format_of(use: Use, names: frozenset[str], known: int) -> Format | None:
    """The first of so many known formats whose columns are among these."""
    formats, _ = _USES[use]
    keys_of = ((format, map(_names, format.keys)) for format in formats)
    return next((format for format, keys in keys_of if not any(map(names.isdisjoint, keys))), None)


def _recognise(row: Columns, use: Use) -> Format:
    """The first format whose columns have a value in the row, else the first whose columns it has."""
    for present in (filter(row.there, row.values), row.values):
        if format := _format_of(use, frozenset(present), len(_USES[use][0])):
            return format
    names = [row.at(name) for name in list(row.values)[:12]]
    more = f" and {len(row.values) - 12} more" if len(row.values) > 12 else ""
    raise _UnknownFormat(f"fits no known format with its columns {', '.join(names) or '(none)'}{more}")


def _recognised_by(row: Columns, format: Format) -> list[str]:
    return [name for keys in format.keys if (name := row.first(_names(keys)))]


def _common_columns(row: Columns, use: Use) -> Values:
    """The columns that every format may have."""
    values: Values = {"category": row.get("category") or None if isinstance(row.values.get("category"), str) else None}
    if is_own(row):
        row.names_read.add("split")  # every campaign computes it anew
    if use == "demonstrations" and (name := next(filter(row.holds, vocabulary.TOOLS), None)):
        values["tools"] = read_tools(row.get(name), row.at(name))
    if use == "preferences":
        values |= who_and_why(row)
        subset = row.values.get("subset")  # RewardBench's name of a category, and elsewhere that of a split
        if values["category"] is None and isinstance(subset, str) and not vocabulary.mark_against("subset", subset):
            values["category"] = row.get("subset")
    return values


def _texts_of(values: Values) -> list[str]:
    turns = [*values.get("messages", []), *values.get("prompt", [])]
    answers = values.get("completions")
    texts = answers if isinstance(answers, list) else []
    return [turn["content"] for turn in turns] + [text for text in texts if isinstance(text, str)]


def _identity(row: Row) -> int | None:
    """What makes a row a duplicate of another. A verdict is none: it was given twice."""
    if isinstance(row, ImportedRanking):
        return None
    if isinstance(row, Prompt):
        return int(row.prompt_id, 16)
    text = row.model_dump_json(exclude={"category"})
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _demonstration(values: Values, where: str) -> Demonstration | Skipped:
    last = values["messages"][-1]
    if last["role"] == "assistant" and not last["content"].strip() and not last.get("tool_calls"):
        return Skipped("empty reference output")
    answers = [turn for turn in values["messages"] if turn["role"] == "assistant"]
    if answers and not any(turn.get("trained", True) for turn in answers):
        return Skipped("no turn carries loss")
    first, *others = values["messages"]
    if (tools := values.get("tools")) and not are_written(tools, first):
        values = {**values, "messages": [{**first, "tools": tools}, *others]}
    return parse_row(Demonstration, values, where, values["at"])


def _prompt(values: Values, where: str) -> Prompt:
    messages = values.get("messages", [])
    user_turns = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if user_turns:
        end = user_turns[-1] + 1
        while end < len(messages) and messages[end]["role"] == "system":
            end += 1
        messages = messages[:end]
    prompt = _without_loss(values.get("prompt") or messages)
    return parse_row(Prompt, {**values, "prompt": prompt}, where, values["at"])


def _ranking(values: Values, where: str) -> ImportedRanking:
    values = {**values, "prompt": _without_loss(values["prompt"])}
    _prompt(values, where)
    return parse_row(ImportedRanking, {"where": where, **values}, where, values["at"])


def _without_loss(turns: list[Values]) -> list[Values]:
    """Turns without whether they carry loss, which is no matter of a prompt."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


_USES: dict[Use, tuple[Sequence[Format], Callable[[Values, str], Any]]] = {
    "demonstrations": (DEMONSTRATIONS, _demonstration),
    "prompts": (PROMPTS, _prompt),
    "preferences": (PREFERENCES, _ranking),
}

# ---- Trueup's own rows ------------------------------------------------------------------------------------------


def _join_labels(rows: Sequence[ImportedRanking], dropped: Dropped) -> list[ImportedRanking]:
    """Rows that Trueup wrote, with each label once: pairs become their ranking, and a second copy is dropped."""
    entries: list[ImportedRanking | str] = []
    labels: dict[str, list[ImportedRanking]] = {}
    for row in rows:
        name = row.provenance.label_id if row.provenance else None
        if name is None:
            entries.append(row)
        elif name in labels:
            labels[name].append(row)
        else:
            entries.append(name)
            labels[name] = [row]
    return [_one_label(labels[one], dropped) if isinstance(one, str) else one for one in entries]


def _one_label(rows: list[ImportedRanking], dropped: Dropped) -> ImportedRanking:
    """The label that rows with one label_id tell of: whole, or in pairs; refuses rows that contradict each other."""
    whole = [row for row in rows if row.ranks is None]
    first, rest = (whole or rows)[0], (whole or rows)[1:]
    alike = None if whole else {"prompt", "annotator", "category", "strength", "provenance"}
    for row in rest:
        if row.model_dump(include=alike, exclude={"where"}) != first.model_dump(include=alike, exclude={"where"}):
            raise DataError(f"{row.where}: has the label_id of {first.where} and says otherwise; take one of them out")
    distinct = {row.model_dump_json(exclude={"where"}): row for row in whole or rows}
    if len(rows) > len(distinct):
        dropped.add("label given twice", len(rows) - len(distinct))
    return first if whole else _from_pairs(list(distinct.values()))


def _from_pairs(pairs: list[ImportedRanking]) -> ImportedRanking:
    """The ranking that these are pairs of. Its answers stand in alphabetical order: theirs is not in the file."""
    if len(pairs) == 1:
        return pairs[0]
    answers: dict[tuple[Any, ...], Values] = {}
    before: Counter[tuple[Any, ...]] = Counter()
    for pair in pairs:
        keys = []
        for i, rank in enumerate(pair.ranks or ()):
            answer = {key: (getattr(pair, key) or {})[i] for key in ("completions", *OF_AN_ANSWER)}
            keys.append((answer["completions"], rank, json.dumps(answer)))
            answers[keys[-1]] = answer
        if pair.display_order is not None:
            before[keys[pair.display_order[0]]] += 1  # this many of the others came after it
    order = sorted(answers)
    tiers = tiers_of_scores([rank for _, rank, _ in order], higher=False)
    # Tied answers are in no pair together, and so the order in which all were shown is known only without ties.
    order_is_known = len(pairs) == len(order) * (len(order) - 1) // 2 and all(
        pair.display_order is not None for pair in pairs
    )
    columns = {key: [answers[one][key] for one in order] for key in ("completions", *OF_AN_ANSWER)}
    display_order = sorted(range(len(order)), key=lambda i: -before[order[i]]) if order_is_known else None
    values = pairs[0].model_dump(
        include={"where", "prompt", "annotator", "category", "strength", "row_id", "provenance"}
    )
    return parse_row(
        ImportedRanking, {**values, **columns, "tiers": tiers, "display_order": display_order}, pairs[0].where
    )
