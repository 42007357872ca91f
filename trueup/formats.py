"""Demonstrations, prompts and preferences in the formats that people already have them in (docs/formats.md).

A row's format is recognised by its keys, in the tables at the end of this file. To add a format, write a converter
and give it a line there: it takes a row and the file's path, gives the fields of our own row as plain values, raises
ValueError for a broken row, and gives `Skipped` for what is sound but of no use. A file is read whole or not at all:
all its broken rows come in one DataError.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import Field, model_validator

from trueup.errors import DataError
from trueup.records import Demonstration, Dropped, Message, Prompt, Row, parse_row

SHOWN_PROBLEMS = 20
ROLES = {"system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant"}
ROLES |= {"gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}

Values = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R", bound=Row)


class Provenance(Row):
    """What Trueup's own files say of a label besides the verdict; the names are those of `records.Ranking`."""

    label_id: str = Field(min_length=1, max_length=200)
    source: str
    created_utc: str
    both_bad: bool = False
    criteria: dict[str, int | None] | None = None
    note: str | None = None
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    guideline_sha256: str | None = None
    sampler: dict[str, Any] = Field({})


class ImportedRanking(Row):
    """What one annotator said of the answers to one prompt, in a file. A pair is a ranking of two."""

    where: str
    """File and line."""
    prompt: list[Message]
    completions: list[str]
    completion_token_ids: list[list[int] | None] | None = None
    finished: list[bool] | None = None
    logps: list[float | None] | None = None
    tiers: list[list[int]]
    """Indices into `completions`, best tier first; answers in one tier are tied; left out: not ranked."""
    annotator: str
    category: str | None = None
    strength: int | None = Field(None, ge=1, le=3)
    explanation: str | None = None
    """Why it is so; shown to annotators who practise with this row."""
    shown: list[int] | None = None
    """Indices into `completions` in the order in which they were shown."""
    provenance: Provenance | None = None
    """Of a row that Trueup wrote."""
    ranks: tuple[int, int] | None = None
    """Of a pair that Trueup wrote: tiers of its two completions in the ranking that it is part of."""

    @model_validator(mode="after")
    def _ranks_answers(self) -> ImportedRanking:
        ranked, count = list(chain(*self.tiers)), len(self.completions)
        if len(ranked) < 2 or len(set(ranked)) < len(ranked) or not set(ranked) <= set(range(count)):
            raise ValueError(f"{self.tiers} is no order of two or more of {count} completions")
        if self.shown is not None and sorted(self.shown) != list(range(count)):
            raise ValueError(f"shown {self.shown} is no order of {count} completions")
        for key in ("completion_token_ids", "finished", "logps"):
            if (values := getattr(self, key)) is not None and len(values) != count:
                raise ValueError(f"{key}: expected one for each of {count} completions, found {len(values)}")
        return self


class Skipped(NamedTuple):
    """What a converter gives in place of a row that is sound but of no use; it is counted by its reason."""

    reason: str


Convert = Callable[[Values, Path], Iterable[Values | Skipped]]


class _UnknownFormat(ValueError):
    """No converter takes a row with these keys."""


class Format(NamedTuple):
    name: str
    keys: tuple[str, ...]
    """What a row is recognised by: it has all of these, where `a|b` is either."""
    convert: Convert


# ---- Reading ----------------------------------------------------------------------------------------------------


def read_demonstrations(path: Path, dropped: Dropped) -> list[Demonstration]:
    """All conversations of a file. Duplicates and empty reference outputs are dropped and counted."""
    return _read(path, DEMONSTRATIONS, _demonstration, dropped)


def read_prompts(path: Path, dropped: Dropped) -> list[Prompt]:
    """All prompts of a file; of demonstrations, the conversation up to the last user turn. Duplicates are dropped."""
    return _read(path, PROMPTS, _prompt, dropped)


def read_preferences(path: Path, dropped: Dropped) -> list[ImportedRanking]:
    """All rankings of a file, one for each annotator of a row.

    Everything that was said stays: ties, verdicts given twice, answers that are empty or the same. Pairs that Trueup
    made of a ranking become that ranking again.
    """
    return _joined(_read(path, PREFERENCES, _ranking, dropped), dropped)


def _read(
    path: Path, formats: Sequence[Format], finish: Callable[[Values, str], R | Skipped], dropped: Dropped
) -> list[R]:
    rows: dict[Any, R] = {}
    problems: list[str] = []
    unknown = False
    for where, entry in _entries(path):
        try:
            for values in _convert(entry, path, formats):
                row = values if isinstance(values, Skipped) else finish(values, where)
                if isinstance(row, Skipped):
                    dropped.add(row.reason)
                elif (identity := _identity(row)) in rows:
                    dropped.add("duplicate")
                else:
                    rows[identity] = row
        except (DataError, ValueError) as error:
            problems.append(str(error) if isinstance(error, DataError) else f"{where}: {error}")
            unknown = unknown or isinstance(error, _UnknownFormat)
        except RecursionError:
            problems.append(f"{where}: nested too deeply")
    if problems:
        lines = [f"{path}: {len(problems)} problems"] if len(problems) > 1 else []
        lines += problems[:SHOWN_PROBLEMS]
        lines += [f"... and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        if unknown:
            known = (f"{', '.join(format.keys).replace('|', ' or ')} ({format.name})" for format in formats)
            lines.append(f"recognised by their keys are: {'; '.join(known)}")
        raise DataError("\n  ".join(lines))
    return list(rows.values())


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each entry stands and its value, which is a ValueError where a line is not JSON."""
    if path.suffix not in {".jsonl", ".json"}:
        raise DataError(f"{path}: expected a .jsonl file (one value a line) or a .json file (a list)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix == ".jsonl":
        entries = [(f"{path}:{n}", _loads(line)) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    elif isinstance(loaded := _loads(text), list):
        entries = [(f"{path}: entry {n}", value) for n, value in enumerate(loaded, start=1)]
    else:
        entries = [(str(path), loaded)]
    if not entries:
        raise DataError(f"{path}: holds no rows")
    yield from entries


def _loads(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_number)
        if r"\ud" in text.lower():  # an escaped half of a surrogate pair is JSON, but no text that can be stored
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        return ValueError(f"not Unicode text (half of a surrogate pair, {error.object[error.start]!a})")
    except RecursionError:
        return ValueError("nested too deeply")
    except json.JSONDecodeError as error:
        hint = "; is it one value a line? Then name it .jsonl" if error.lineno > 1 and "Extra" in error.msg else ""
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return ValueError(f"not JSON ({error.msg} at {line}column {error.colno}){hint}")
    except ValueError as error:
        return ValueError(f"not JSON ({error})")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _convert(row: Any, path: Path, formats: Sequence[Format]) -> Iterator[Values | Skipped]:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {_shown(row)}")
    for format in formats:
        if all(any(key in row for key in keys.split("|")) for keys in format.keys):
            columns: Values = {"category": row["category"] if isinstance(row.get("category"), str) else None}
            columns["annotator"] = str(row.get("annotator") or row.get("judge") or "unknown")
            columns |= {"strength": row.get("strength"), "provenance": _provenance(row)}
            columns["explanation"] = row["explanation"] if isinstance(row.get("explanation"), str) else None
            for values in format.convert(row, path):
                yield values if isinstance(values, Skipped) else columns | values
            return
    raise _UnknownFormat(f"fits no known format with its keys {', '.join(row) or '(none)'}")


def _identity(row: Row) -> Any:
    """What makes a row a duplicate of another. A verdict is none: it was given twice."""
    if isinstance(row, ImportedRanking):
        return object()
    return row.prompt_id if isinstance(row, Prompt) else row.model_dump_json(exclude={"category"})


def _demonstration(values: Values, where: str) -> Demonstration | Skipped:
    last = values["messages"][-1]
    if last["role"] == "assistant" and not last["content"].strip():
        return Skipped("empty reference output")
    return parse_row(Demonstration, values, where)


def _prompt(values: Values, where: str) -> Prompt:
    messages = values.get("messages", [])
    asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return parse_row(Prompt, {"prompt": messages[: asked[-1] + 1] if asked else messages, **values}, where)


def _ranking(values: Values, where: str) -> ImportedRanking:
    _prompt(values, where)
    return parse_row(ImportedRanking, {"where": where, **values}, where)


def _joined(rows: list[ImportedRanking], dropped: Dropped) -> list[ImportedRanking]:
    """Of the rows that Trueup wrote, each label once: pairs become their ranking, a second copy is dropped."""
    joined: list[ImportedRanking | str] = []
    labels: dict[str, list[ImportedRanking]] = {}
    for row in rows:
        name = row.provenance.label_id if row.provenance else None
        if name is None:
            joined.append(row)
        elif name in labels:
            labels[name].append(row)
        else:
            joined.append(name)
            labels[name] = [row]
    return [_one_label(labels[one], dropped) if isinstance(one, str) else one for one in joined]


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
    found: dict[tuple[Any, ...], Values] = {}
    before: Counter[tuple[Any, ...]] = Counter()
    for pair in pairs:
        keys = []
        for i, rank in enumerate(pair.ranks or ()):
            answer = {key: (getattr(pair, key) or {})[i] for key in ("completions", *_OF_AN_ANSWER)}
            keys.append((answer["completions"], rank, json.dumps(answer)))
            found[keys[-1]] = answer
        if pair.shown is not None:
            before[keys[pair.shown[0]]] += 1  # this many of the others came after it
    order = sorted(found)
    levels = sorted({rank for _, rank, _ in order})
    tiers = [[i for i, key in enumerate(order) if key[1] == level] for level in levels]
    # Tied answers are in no pair together, and so the order in which all were shown is known only without ties.
    known = len(pairs) == len(order) * (len(order) - 1) // 2 and all(pair.shown is not None for pair in pairs)
    columns = {key: [found[one][key] for one in order] for key in ("completions", *_OF_AN_ANSWER)}
    shown = sorted(range(len(order)), key=lambda i: -before[order[i]]) if known else None
    values = pairs[0].model_dump(include={"where", "prompt", "annotator", "category", "strength", "provenance"})
    return parse_row(ImportedRanking, {**values, **columns, "tiers": tiers, "shown": shown}, pairs[0].where)


# ---- Parts of rows ----------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _get(row: Values, key: str, kind: type[T], within: str = "") -> T:
    """A value of the kind that the format says; a list or object that is empty is taken for a broken one."""
    value = row.get(key)
    if not isinstance(value, kind) or value in ([], {}):
        expected = "text" if kind is str else "a list" if kind is list else "an object"
        raise ValueError(f"{within}{key}: {f'expected {expected}, found {_shown(value)}' if key in row else 'missing'}")
    return value


def _items(row: Values, key: str, kind: type[T]) -> list[T]:
    return [_get({str(i): value}, str(i), kind, f"{key}.") for i, value in enumerate(_get(row, key, list))]


def _say(role: str, content: str) -> Values:
    return {"role": role, "content": content}


def _message(message: Values, within: str) -> Values:
    role_key, content_key = ("from", "value") if "from" in message else ("role", "content")
    role = _get(message, role_key, str, within)
    if role not in ROLES:
        raise ValueError(f"{within}{role_key}: {role!r} is none of the known roles {', '.join(ROLES)}")
    return _say(ROLES[role], _get(message, content_key, str, within))


def _turns(row: Values, key: str, speaker: str = "user") -> list[Values]:
    """A conversation: messages, one message, an HH string, or the text of one `speaker`."""
    value = row[key]
    if isinstance(value, dict):
        return [_message(value, f"{key}.")]
    if not isinstance(value, str):
        return [_message(message, f"{key}.{i}.") for i, message in enumerate(_items(row, key, dict))]
    before, *parts = re.split(r"\n\n(Human|Assistant):", value)
    if not parts or before.strip():
        return [_say(speaker, value)]
    return [_say(ROLES[name.lower()], text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]


def _system(row: Values) -> list[Values]:
    """The column in which LLaMA-Factory's files keep the system message."""
    return [_say("system", _get(row, "system", str))] if row.get("system") else []


def _sharegpt(row: Values) -> list[Values]:
    return _system(row) + _turns(row, "conversations")


def _question(row: Values) -> list[Values]:
    """The column `prompt`. An HH string there ends with the marker of the answer to come."""
    turns = _turns(row, "prompt")
    return turns[:-1] if isinstance(row["prompt"], str) and turns[-1] == _say("assistant", "") else turns


def _task(row: Values, instruction: str = "instruction", given: str = "input") -> list[Values]:
    """Instruction, blank line, input; the instruction alone where there is no input."""
    parts = [_get(row, instruction, str), _get(row, given, str) if row.get(given) is not None else ""]
    return [_say("user", "\n\n".join(part for part in parts if part.strip()))]


# ---- Demonstrations and prompts ---------------------------------------------------------------------------------


def _prompt_completion(row: Values, path: Path) -> list[Values]:
    return [{"messages": _question(row) + _turns(row, "completion", "assistant")}]


def _columns(instruction: str, given: str, output: str) -> Convert:
    """Converter of rows with a column for each part."""
    return lambda row, _: [
        {"messages": [*_system(row), *_task(row, instruction, given), _say("assistant", _get(row, output, str))]}
    ]


def _self_instruct(row: Values, path: Path) -> Iterator[Values]:
    for i, instance in enumerate(_items(row, "instances", dict)):
        answer = _get(instance, "output", str, f"instances.{i}.")
        yield {"messages": [*_task(instance | {"instruction": row["instruction"]}), _say("assistant", answer)]}


class _Annotations(Row):
    annotations: list[str] = Field(min_length=1)


def _instruction_induction(row: Values, path: Path) -> Iterator[Values]:
    """Inputs and outputs of one task, which the file is named for; people's instructions for it stand elsewhere."""
    name = Path("annotations", path.name)
    file = next((parent / name for parent in path.absolute().parents if (parent / name).is_file()), None)
    if file is None:
        raise ValueError(f"these examples need an instruction, and no folder above the file has {name}")
    annotations = parse_row(_Annotations, next(_entries(file))[1], str(file)).annotations
    # Of these hand-written lines, those that begin in lower case are notes more often than instructions.
    instruction = next((text for text in annotations if text[:1].isupper()), annotations[0]).strip()
    for number, example in _get(row, "examples", dict).items():
        if not isinstance(example, dict) or not {"input", "output"} <= set(example):
            raise ValueError(f"examples.{number}: expected input and output, found {_shown(example)}")
        answer = _get(example, "output", str, f"examples.{number}.")
        task = _task({"instruction": instruction, "input": example["input"]})
        yield {"messages": [*task, _say("assistant", answer)], "category": path.stem}


def _oasst(walk: Callable[[Values, list[Values]], Iterable[Values]], nothing: str) -> Convert:
    """Converter of trees, by a walk that starts at the root with no messages before it."""

    def convert(row: Values, path: Path) -> list[Values | Skipped]:
        skipped: list[Values | Skipped] = []
        root = _tree(_get(row, "prompt", dict), skipped)
        found: list[Values | Skipped] = [*walk(root, [])] if root else []
        return skipped + (found or [Skipped(nothing)])

    return convert


def _tree(message: Values, skipped: list[Values | Skipped]) -> Values | None:
    """An OASST message as ours, with its rank and replies, without what was deleted or not approved in review."""
    if message.get("deleted") or not message.get("review_result", True):
        skipped.append(Skipped("deleted or unreviewed message"))
        return None
    within = f"message {message.get('message_id')}: "
    if type(rank := message.get("rank")) not in (int, type(None)):
        raise ValueError(f"{within}rank: expected a whole number, found {_shown(rank)}")
    replies = [_tree(reply, skipped) for reply in (_items(message, "replies", dict) if message.get("replies") else [])]
    node = _message({"role": message.get("role"), "content": message.get("text")}, within)
    return node | {"rank": rank, "replies": [reply for reply in replies if reply]}


def _best_paths(asked: Values, before: list[Values]) -> list[Values]:
    """At each user turn the best-ranked answer; where people went on from it, one conversation for each of them."""
    if not asked["replies"]:
        return []
    best = min(asked["replies"], key=lambda reply: (reply["rank"] is None, reply["rank"]))
    here = [*before, asked, best]
    return [longer for reply in best["replies"] for longer in _best_paths(reply, here)] or [{"messages": here}]


def _first_turn(row: Values, path: Path) -> list[Values]:
    return [{"prompt": [_say("user", _items(row, "turns", str)[0])]}]


# ---- Preferences ------------------------------------------------------------------------------------------------

TIE, FIRST, SECOND = [[0, 1]], [[0], [1]], [[1], [0]]


def _answer(row: Values, key: str, prompt: list[Values]) -> str:
    """One completion; a conversation that begins with the prompt is taken without it."""
    turns = _turns(row, key, "assistant")
    turns = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if [turn["role"] for turn in turns] != ["assistant"]:
        found = ", ".join(turn["role"] for turn in turns) or "none"
        raise ValueError(f"{key}: expected one assistant turn after the prompt, found {found}")
    return str(turns[0]["content"])


def _verdict(row: Values, key: str) -> list[list[int]]:
    if type(row[key]) is not int or row[key] not in (0, 1, 2):
        raise ValueError(f"{key}: expected 0 (tie), 1 or 2, found {_shown(row[key])}")
    return (TIE, FIRST, SECOND)[row[key]]


def _trueup_ranking(row: Values, path: Path) -> list[Values]:
    more = {key: row.get(key) for key in ("shown", *_OF_AN_ANSWER)} if _is_own(row) else {}
    return [{"prompt": _question(row), "completions": row["completions"], "tiers": row["tiers"], **more}]


_OF_AN_ANSWER = ("completion_token_ids", "finished", "logps")


def _is_own(row: Values) -> bool:
    """Whether Trueup wrote this row: a column `seconds` of somebody else's file may mean anything."""
    return {"label_id", "prompt_id", "source", "annotator", "created_utc"} <= row.keys()


def _provenance(row: Values) -> Values | None:
    if not _is_own(row):
        return None
    return {key: row[key] for key in Provenance.model_fields if key in row}


def _pair(row: Values, path: Path) -> list[Values]:
    if "prompt" in row:
        prompt = _question(row)
    else:
        prompt = _sharegpt(row) if "conversations" in row else _turns(row, "chosen", "assistant")[:-1]
    answers = {key: _answer(row, key, prompt) for key in ("chosen", "rejected")}
    # Not the better one first: whoever disagrees judged the same two answers, and they are one item.
    sides = sorted(answers, key=lambda key: answers[key])
    pair = {
        "prompt": prompt,
        "completions": [answers[side] for side in sides],
        "tiers": FIRST if sides[0] == "chosen" else SECOND,
    }
    return [pair | (_own_pair(row, sides) if _is_own(row) else {})]


def _own_pair(row: Values, sides: list[str]) -> Values:
    """What Trueup's rows say of the two answers and of the ranking that they are part of."""
    if (first := row.get("shown_first")) not in ("chosen", "rejected", None):
        raise ValueError(f"shown_first: expected chosen, rejected or nothing, found {_shown(first)}")
    ranks = {key: row.get(f"{key}_rank") for key in ("chosen", "rejected")}
    chosen, rejected = ranks.values()
    if type(chosen) is not int or type(rejected) is not int or chosen >= rejected:
        raise ValueError(f"chosen_rank, rejected_rank: expected a lower and a higher number, found {_shown(ranks)}")
    return {
        "completion_token_ids": [row.get(f"{side}_token_ids") for side in sides],
        "finished": [row.get(f"{side}_finished", True) for side in sides],
        "logps": [row.get(f"{side}_logp") for side in sides],
        "shown": None if first is None else [sides.index(first), 1 - sides.index(first)],
        "ranks": [ranks[side] for side in sides],
    }


def _pandalm(row: Values, path: Path) -> Iterator[Values]:
    answers = [_get(row, key, str) for key in ("response1", "response2")]
    for key in (key for key in row if re.fullmatch(r"annotator\d+", key)):
        yield {"prompt": _task(row), "completions": answers, "tiers": _verdict(row, key), "annotator": key}


def _finegrained_qa(row: Values, path: Path) -> list[Values]:
    """Four answers judged in all six pairs: one ranking where the verdicts make an order, else one for each pair."""
    passages = _items(row, "passages", list) if row["passages"] else []
    texts = ["\n".join(_items({f"passages.{i}": lines}, f"passages.{i}", str)) for i, lines in enumerate(passages)]
    prompt = [_say("user", "\n\n".join([_get(row, "question", str), *texts]))]
    answers = [_get(row, f"prediction {k}", str) for k in (1, 2, 3, 4)]
    if len(verdicts := _get(row, "preference", list)) != 6:
        raise ValueError(f"preference: expected 6 verdicts, found {_shown(verdicts)}")
    sides = [_verdict({"preference": verdict}, "preference") for verdict in verdicts]
    pairs = list(zip(combinations(range(4), 2), sides, strict=True))

    # Wins less losses: if the verdicts make an order at all, it is the one of these scores.
    score = [0, 0, 0, 0]
    for (i, j), side in pairs:
        score[i] += (side == FIRST) - (side == SECOND)
        score[j] -= (side == FIRST) - (side == SECOND)
    order = [[i for i in range(4) if score[i] == level] for level in sorted(set(score), reverse=True)]
    if all(
        side == (TIE if score[i] == score[j] else FIRST if score[i] > score[j] else SECOND) for (i, j), side in pairs
    ):
        return [{"prompt": prompt, "completions": answers, "tiers": order}]
    return [{"prompt": prompt, "completions": [answers[i], answers[j]], "tiers": side} for (i, j), side in pairs]


def _oasst_rankings(node: Values, before: list[Values]) -> Iterator[Values]:
    """The ranked answers to each user turn, whatever the rank of the answers that led there."""
    here = [*before, node]
    answers = [reply for reply in node["replies"] if reply["role"] == "assistant" and reply["rank"] is not None]
    if len(answers) > 1:
        ranks = [answer["rank"] for answer in answers]
        tiers = [[i for i, rank in enumerate(ranks) if rank == level] for level in sorted(set(ranks))]
        yield {"prompt": here, "completions": [answer["content"] for answer in answers], "tiers": tiers}
    for reply in node["replies"]:
        yield from _oasst_rankings(reply, here)


def _side_by_side(row: Values, path: Path) -> list[Values]:
    prompt = _question(row)
    names = [next(f"{name}_{side}" for name in ("completion", "response") if f"{name}_{side}" in row) for side in "ab"]
    key = "winner" if "winner" in row else "preference"
    said = re.fullmatch(r"(?:(?:model|completion|response)_)?(a|b)|tie\b.*", _get(row, key, str).strip().lower())
    if not said:
        raise ValueError(f"{key}: expected a, b, model_a, model_b or tie, found {_shown(row[key])}")
    tiers = {"a": FIRST, "b": SECOND, None: TIE}[said[1]]
    return [{"prompt": prompt, "completions": [_answer(row, name, prompt) for name in names], "tiers": tiers}]


# ---- Formats, tried in this order -------------------------------------------------------------------------------

DEMONSTRATIONS = [
    Format("Trueup, TRL", ("messages",), lambda row, _: [{"messages": _turns(row, "messages")}]),
    Format("OASST trees", ("message_tree_id", "prompt"), _oasst(_best_paths, "tree without an answer")),
    Format("TRL", ("prompt", "completion"), _prompt_completion),
    Format("self_instruct", ("instruction", "instances"), _self_instruct),
    Format("Dolly", ("instruction", "context", "response"), _columns("instruction", "context", "response")),
    Format("Alpaca", ("instruction", "output"), _columns("instruction", "input", "output")),
    Format("ShareGPT", ("conversations",), lambda row, _: [{"messages": _sharegpt(row)}]),
    Format("GSM8K", ("question", "answer"), _columns("question", "", "answer")),
    Format("instruction_induction", ("examples",), _instruction_induction),
]
PROMPTS = [
    *DEMONSTRATIONS,
    Format("MT-Bench", ("question_id", "turns"), _first_turn),
    Format("PandaLM", ("instruction", "response1", "response2"), lambda row, _: [{"prompt": _task(row)}]),
    Format("Trueup, TRL, IFEval", ("prompt",), lambda row, _: [{"prompt": _question(row)}]),
]
PREFERENCES = [
    Format("Trueup's rankings", ("prompt", "completions", "tiers"), _trueup_ranking),
    Format("Trueup, TRL", ("prompt", "chosen", "rejected"), _pair),
    Format("ShareGPT pairs", ("conversations", "chosen", "rejected"), _pair),
    Format("TRL, HH", ("chosen", "rejected"), _pair),
    Format("PandaLM", ("instruction", "response1", "response2", "annotator1"), _pandalm),
    Format("finegrained_qa", ("question", "passages", "prediction 1", "preference"), _finegrained_qa),
    Format("OASST trees", ("message_tree_id", "prompt"), _oasst(_oasst_rankings, "tree without ranked answers")),
    Format(
        "side by side",
        ("prompt", "completion_a|response_a", "completion_b|response_b", "winner|preference"),
        _side_by_side,
    ),
]
