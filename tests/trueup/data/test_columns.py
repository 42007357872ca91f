"""No column that changes what a row means is passed over in silence: over all formats, all meanings, all shapes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import shapes
from trueup.data.formats import read_demonstrations, read_preferences, read_prompts, vocabulary
from trueup.data.records import Dropped
from trueup.errors import DataError

CASES = Path(__file__).parents[2] / "data" / "cases"
DOCS = Path(__file__).parents[3] / "docs" / "formats.md"
READ: dict[str, Any] = {
    "demonstrations": read_demonstrations,
    "prompts": read_prompts,
    "preferences": read_preferences,
}
CANARY = "The canary sings at dawn."
EMPTY: tuple[Any, ...] = (None, "", [])


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(rows: list[Any]) -> str:
    messages = [message for row in rows for message in getattr(row, "messages", None) or row.prompt]
    return "\n".join(
        [one.said for one in messages] + [text for row in rows for text in getattr(row, "completions", [])]
    )


def fate(use: str, path: Path, column: str) -> str:
    """What becomes of a column that holds the canary: honoured, refused by its name, dropped, counted; or silence."""
    dropped = Dropped()
    try:
        rows = READ[use](path, dropped)
    except DataError as error:
        assert f"{path}:1: " in str(error)
        # Of two columns that say different things either is named.
        named = column in str(error) or "which the other columns do not say" in str(error)
        return "refused" if named else f"refused without its name: {error}"
    if CANARY in said(rows) or any(getattr(row, "row_id", None) == CANARY for row in rows):
        return "honoured"
    if dropped.counts:
        return "dropped"
    return "counted" if any(name.endswith(vocabulary.canonical(column)) for name in dropped.ignored) else "silence"


def examples() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Use, format and example row of every line of the documentation that has one, and a few layouts more."""
    for use, title in (("demonstrations", "Demonstrations"), ("prompts", "Prompts"), ("preferences", "Preferences")):
        section = DOCS.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
        for line in [one.strip("| ").split(" | ") for one in section.splitlines() if one.startswith("|")][2:]:
            if len(line) > 2 and line[2].startswith("`") and line[0] != "instruction_induction":
                yield use, line[0], json.loads(line[2].strip("`"))
    turn = [{"role": "user", "content": "Hi"}]
    answer = [{"role": "assistant", "content": "Hello"}]
    yield "demonstrations", "TRL as messages", {"prompt": turn, "completion": answer}
    yield (
        "demonstrations",
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
    )
    yield "prompts", "prompt as messages", {"prompt": turn}
    yield (
        "preferences",
        "TRL as messages",
        {"prompt": turn, "chosen": answer, "rejected": [{**answer[0], "content": "No"}]},
    )


EXAMPLES = [pytest.param(use, row, id=f"{use}: {name}") for use, name, row in examples()]


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


# ---- Columns of a row -------------------------------------------------------------------------------------------


def allowed(use: str) -> dict[str, tuple[Any, set[str]]]:
    """A value for each column, and what may become of it."""
    found: dict[str, tuple[Any, set[str]]] = {}
    for name in [*vocabulary.SYSTEM, *vocabulary.GIVEN]:
        found[name] = CANARY, {"honoured", "refused"}
    for name in vocabulary.HISTORY:
        found[name] = [["Before?", CANARY]], {"honoured", "refused"}
    for name in vocabulary.CHOICES:
        found[name] = [CANARY, "Another."], {"honoured", "refused"}
    found["option_a"] = CANARY, {"honoured", "refused"}
    for name in "tools images image audio videos tool_calls functions function_call chat_template_kwargs".split():
        found[name] = [CANARY], {"refused"}
    for name in "system_text bot_system dialogue_context original_passage answer_options past_history".split():
        found[name] = CANARY, {"honoured", "refused"}
    for name in "image_path audio_url video tool_results input_audio img available_functions screenshot".split():
        found[name] = CANARY, {"refused"}
    thought = {"refused"} if use == "demonstrations" else {"counted"}
    for name in "reasoning_content reasoning thinking chain_of_thought Complex_CoT deepseek_thinking".split():
        found[name] = CANARY, thought
    for name in [*vocabulary.WEIGHTS, "loss"]:
        found[name] = False, {"dropped"} if use != "prompts" else {"counted"}
    for name in vocabulary.EXCLUDED:
        found[name] = True, {"dropped"}
    found["status"] = "discarded", {"dropped"}
    if use != "prompts":
        found |= {name: (True, {"dropped"}) for name in vocabulary.NOT_TRAINED}
        found |= {
            name: (True, {"refused"}) for name in ("no_train", "do_not_train", "train_on_turn", "unsupervised_loss")
        }
    if use == "demonstrations":
        found |= {name: (False, {"dropped"}) for name in vocabulary.LABELS}
        found |= {name: (True, {"dropped"}) for name in vocabulary.CUT}
        found |= {name: (CANARY, {"refused", "honoured"}) for name in vocabulary.ANSWERS}
        found["sample_weight"] = 0.5, {"refused"}
    for name in ("source", "metadata", "a_column_of_theirs"):
        found[name] = CANARY, {"counted"}
    found["id"] = CANARY, {"honoured" if use == "preferences" else "counted"}
    return found


@pytest.mark.parametrize(("use", "row"), EXAMPLES)
def test_a_column_that_means_something_is_honoured_refused_or_counted_in_every_format(
    tmp_path: Path, use: str, row: dict[str, Any]
) -> None:
    wrong = {}
    there = {vocabulary.canonical(name) for name in row}
    for name, (value, may) in allowed(use).items():
        if name in there:
            continue
        for spelled in {name, name.upper(), name.title().replace("_", "-"), camel(name)}:
            became = fate(use, written(tmp_path, {**row, spelled: value}), spelled)
            if became not in may:
                wrong[spelled] = became
    assert wrong == {}


@pytest.mark.parametrize(("use", "row"), EXAMPLES)
def test_a_column_that_is_empty_changes_nothing(tmp_path: Path, use: str, row: dict[str, Any]) -> None:
    plain = READ[use](written(tmp_path, row), as_it_is := Dropped())
    empty = "system history context choices tools images reasoning_content weight label annotator messages".split()
    for name in empty:
        for value in EMPTY:
            if vocabulary.canonical(name) not in map(vocabulary.canonical, row):
                found = READ[use](written(tmp_path, {**row, name: value}), dropped := Dropped())
                assert (found, dropped.ignored) == (plain, as_it_is.ignored), name


# ---- Keys of a message ------------------------------------------------------------------------------------------


def with_key(row: Any, role: str, key: str, value: Any) -> Any:
    """The row with a key added to every message of this role."""
    if isinstance(row, list):
        return [with_key(one, role, key, value) for one in row]
    if isinstance(row, dict):
        found = {name: with_key(one, role, key, value) for name, one in row.items()}
        mine = row.get("role", row.get("from")) in (
            (role, "gpt") if role == "assistant" else (role, "human", "prompter")
        )
        return {**found, key: value} if mine else found
    return row


@pytest.mark.parametrize(("use", "row"), EXAMPLES)
def test_a_key_of_a_message_is_honoured_refused_or_counted(tmp_path: Path, use: str, row: dict[str, Any]) -> None:
    refused: dict[str, Any] = {
        "tool_calls": [{"name": CANARY}],
        "audio": {"id": 1},
        "images": ["x.png"],
        "refusal": "No.",
        "channel": "analysis",
    }
    refused |= {"loss_scale": 0, "train_weight": 1, "no_train": True, "label_mask": 0.5}
    refused |= {"reasoning_content": CANARY, "thinking": CANARY, "weight": 0.5}
    refused |= {"context": CANARY, "documents": [CANARY], "choices": [CANARY], "history": [["a", CANARY]]}
    refused |= {"persona": CANARY, "character": CANARY, "few_shot": [CANARY]}
    for role in ("user", "assistant"):
        for key, value in refused.items():
            changed = with_key(row, role, key, value)
            if changed != row:
                became = fate(use, written(tmp_path, changed), key)
                calls = key == "tool_calls" and use == "demonstrations" and role == "assistant"
                assert became == "refused" or (calls and became == "honoured"), (role, key)
        if (changed := with_key(row, role, "nickname", CANARY)) != row:
            assert fate(use, written(tmp_path, changed), "nickname") == "counted"


LOSS = [("weight", 0), ("weight", "0"), ("train", False), ("loss_weight", 0.0), ("loss", 0), ("trainable", "false")]
LOSS += [("Train", False), ("lossWeight", 0), ("masked", True), ("ignore", 1)]


@pytest.mark.parametrize(("key", "value"), LOSS, ids=str)
@pytest.mark.parametrize("column", ["messages", "conversations", "Messages"])
def test_a_turn_of_weight_0_is_read_and_not_trained_on(tmp_path: Path, column: str, key: str, value: Any) -> None:
    turns = [("user", "Q1"), ("assistant", "Bad."), ("user", "Q2"), ("assistant", "Good.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[1][key] = value
    [row] = read_demonstrations(written(tmp_path, {column: messages}), dropped := Dropped())
    assert [(one.content, one.trained) for one in row.messages if one.role == "assistant"] == [
        ("Bad.", False),
        ("Good.", True),
    ]
    messages[3][key] = value
    assert read_demonstrations(written(tmp_path, {column: messages}), dropped) == []
    assert dropped.counts == {"no turn carries loss": 1}


def test_a_turn_that_is_marked_as_bad_is_read_and_not_trained_on(tmp_path: Path) -> None:
    for key, value in {"label": False, "feedback": "negative", "thumbs_up": False, "truncated": True}.items():
        turns = [("user", "Q1"), ("assistant", "Bad."), ("user", "Q2"), ("assistant", "Good.")]
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
        messages[1][key] = value
        [row] = read_demonstrations(written(tmp_path, {"messages": messages}), Dropped())
        assert [one.trained for one in row.messages] == [True, False, True, True], key


def test_a_turn_holds_one_text_or_the_other_is_refused_by_its_name(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "Jupiter."}
    for key in ("value", "text"):
        turns = [{"role": "user", "content": "Which?", key: CANARY}, answer]
        assert fate("demonstrations", written(tmp_path, {"messages": turns}), key) == "refused"
        turns[0][key] = "Which?"
        [row] = read_demonstrations(written(tmp_path, {"messages": turns}), Dropped())
        assert row.messages[0].content == "Which?"
    for key in ("input", "context", "history"):
        pairs = [{"instruction": "Which?", key: CANARY, "output": "Jupiter."}]
        assert fate("demonstrations", written(tmp_path, {"conversation": pairs}), key) == "refused"


def test_the_text_of_a_row_in_a_template_is_the_row_again_and_noinput_is_none(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    text = "Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3"
    [one] = read_demonstrations(written(tmp_path, {**row, "text": text}), Dropped())
    assert [message.content for message in one.messages] == ["Add.\n\n1 2", "3"]
    assert fate("demonstrations", written(tmp_path, {**row, "text": text.replace("1 2", "2 2")}), "text") == "refused"
    instances = [{"input": "<noinput>", "output": "3"}]
    for plain in ({**row, "input": "<noinput>"}, {"instruction": "Add.", "instances": instances}):
        [one] = read_demonstrations(written(tmp_path, plain), Dropped())
        assert one.messages[0].content == "Add."


def test_what_carries_loss_is_no_matter_of_prompts_and_preferences(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "weight": 0},
        {"role": "user", "content": "R"},
    ]
    [prompt] = read_prompts(written(tmp_path, {"messages": messages}), Dropped())
    assert all(message.trained for message in prompt.prompt)


MARKS = [
    ("label", "False"),
    ("label", "bad"),
    ("kto_tag", 0),
    ("thumbs", "down"),
    ("feedback", "negative"),
    ("is_correct", "no"),
    ("thumbs", -1),
    ("feedback", "-1"),
]


@pytest.mark.parametrize(("column", "value"), MARKS, ids=str)
def test_an_answer_that_is_marked_as_bad_is_none_to_imitate_and_its_prompt_is_asked(
    tmp_path: Path, column: str, value: Any
) -> None:
    path = written(tmp_path, {"prompt": "Q", "completion": "A", column: value})
    assert read_demonstrations(path, dropped := Dropped()) == [] and dropped.counts == {f"{column}: false": 1}
    assert len(read_prompts(path, Dropped())) == 1


def test_a_label_that_names_a_class_is_counted_and_one_that_may_is_refused(tmp_path: Path) -> None:
    for value in ("math", "positive", 3, "3"):
        assert (
            len(
                read_demonstrations(
                    written(tmp_path, {"prompt": "Q", "completion": "A", "label": value}), dropped := Dropped()
                )
            )
            == 1
        )
        assert dropped.ignored == {"label": 1}
    for number in (0, 1, 1.0, -1):
        assert (
            fate("demonstrations", written(tmp_path, {"prompt": "Q", "completion": "A", "label": number}), "label")
            == "refused"
        )


# ---- Marks, and texts that a row may hang on --------------------------------------------------------------------

FLAGS: list[tuple[str, Any, Any, str, str, str]] = [
    # column, a value that means something, one that does not; its fate in demonstrations, prompts, preferences
    ("keep", False, True, "dropped", "dropped", "dropped"),
    ("use", 0, 1, "dropped", "dropped", "dropped"),
    ("include", "no", "yes", "dropped", "dropped", "dropped"),
    ("exclude", True, False, "dropped", "dropped", "dropped"),
    ("drop", True, False, "dropped", "dropped", "dropped"),
    ("skip", 1, 0, "dropped", "dropped", "dropped"),
    ("ignore", "true", "false", "dropped", "dropped", "dropped"),
    ("deleted", True, False, "dropped", "dropped", "dropped"),
    ("is_removed", True, False, "dropped", "dropped", "dropped"),
    ("should_be_dropped", True, False, "dropped", "dropped", "dropped"),
    ("do_not_use", True, False, "dropped", "dropped", "dropped"),
    ("exclude_from_training", True, False, "dropped", "dropped", "dropped"),
    ("deleted_at", "2026-11-27", "", "refused", "refused", "refused"),
    ("removed_at", 1764000000, 0, "refused", "refused", "refused"),
    ("is_bad", True, False, "dropped", "counted", "refused"),
    ("bad", 1, 0, "dropped", "counted", "refused"),
    ("good", False, True, "dropped", "counted", "refused"),
    ("valid", "false", "true", "dropped", "counted", "refused"),
    ("is_valid", False, True, "dropped", "counted", "refused"),
    ("invalid", True, False, "dropped", "counted", "refused"),
    ("not_valid", True, False, "dropped", "counted", "refused"),
    ("flagged", True, False, "refused", "refused", "refused"),
    ("flagged", "hate speech", "", "refused", "refused", "refused"),
    ("spam", 1, 0, "refused", "refused", "refused"),
    ("is_toxic", True, False, "refused", "refused", "refused"),
    ("nsfw", True, False, "refused", "refused", "refused"),
    ("is_safe", False, True, "refused", "refused", "refused"),
    ("split", "test", "train", "refused", "counted", "refused"),
    ("subset", "Validation", "alpaca", "refused", "counted", "refused"),
    ("status", "rejected", "approved", "dropped", "dropped", "dropped"),
    ("status", "needs review", "done", "refused", "refused", "refused"),
    ("quality", "bad", "high", "refused", "counted", "refused"),
    ("error", "timed out", "", "refused", "refused", "refused"),
    ("is_complete", False, True, "dropped", "counted", "counted"),
    ("cut_off", True, False, "dropped", "counted", "counted"),
    ("finish_reason", "length", "stop", "dropped", "counted", "counted"),
    ("stop_reason", "max_tokens", "end_turn", "dropped", "counted", "counted"),
    ("done_reason", "length", "stop", "dropped", "counted", "counted"),
]


@pytest.mark.parametrize(("name", "means", "not_so", "d", "p", "f"), FLAGS, ids=[f"{f[0]}: {f[1]}" for f in FLAGS])
def test_a_mark_against_a_row_is_followed_or_refused_and_never_passed_over(
    tmp_path: Path, name: str, means: Any, not_so: Any, d: str, p: str, f: str
) -> None:
    row = {"prompt": "Q", "completion": "A"}
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    for use, plain, wanted in (("demonstrations", row, d), ("prompts", row, p), ("preferences", pair, f)):
        for spelled in {name, name.upper(), name.replace("_", "-"), name.replace("_", " ").title(), camel(name)}:
            became = fate(use, written(tmp_path, {**plain, spelled: means}), spelled)
            assert became == wanted, (use, spelled, became)
            assert len(READ[use](written(tmp_path, {**plain, spelled: not_so}), Dropped())) == 1, (use, spelled)
            told = READ[use](written(tmp_path, {**plain, spelled: means}), dropped := Dropped(), "refuse", [name])
            assert len(told) == 1 and not dropped.counts and dropped.ignored[vocabulary.canonical(name)] == 1


PARTS = "persona character bot_personality few_shot fewShotExamples instruction_system demonstrations".split()
PARTS += ["bot_description"]
"""Refused beside a question, and beside a conversation too."""
OF_A_QUESTION = "examples hint rules guidelines constraints instructions premise facts search_results body".split()
OF_A_QUESTION += "schema definition task_description previous".split()


@pytest.mark.parametrize("name", [*PARTS, *OF_A_QUESTION, "reference"])
def test_a_text_that_a_question_may_hang_on_is_refused_unless_it_is_asked_or_said_to_mean_nothing(
    tmp_path: Path, name: str
) -> None:
    row = {"prompt": "Why do penguins swim?", "completion": "To eat."}
    whole = {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": "To eat."}]}
    for value in (CANARY, [CANARY], {"a": CANARY}):
        assert fate("demonstrations", written(tmp_path, {**row, name: value}), name) == "refused"
        kept = "refused" if name in PARTS else "counted"
        assert fate("demonstrations", written(tmp_path, {**whole, name: value}), name) == kept
        path = written(tmp_path, {**row, name: value})
        [found] = read_demonstrations(path, Dropped(), "refuse", [name])
        assert found.messages[0].content == row["prompt"]
    for harmless in ("penguins swim", 3, True, None):
        assert len(read_demonstrations(written(tmp_path, {**row, name: harmless}), Dropped())) == 1


ORDINARY: dict[str, Any] = {
    "id": "a-17",
    "uuid": "5f0c",
    "source": "forum",
    "dataset": "mine",
    "language": "en",
    "lang": "German",
    "model": "gpt-4",
    "model_name": "Some Model",
    "generator": "x",
    "timestamp": "2026-11-27T09:30:00Z",
    "created_at": 1764000000,
    "updated_at": "yesterday evening",
    "num_tokens": 12,
    "token_count": 0,
    "length": 1,
    "sha256": "ab12",
    "topic": "Animals of the sea",
    "category": "open qa",
    "tags": ["easy", "short answer"],
    "difficulty": "low",
    "score": 0,
    "toxicity": 0.93,
    "n": 3,
    "num_votes": 0,
    "multiplicity": 2,
    "rating": 1,
    "url": "https://example.org/a b",
    "title": "On penguins",
    "author": "Ann B.",
    "license": "cc0 1.0",
    "metadata": {"split": "test", "flagged": True, "persona": "a pirate"},
    "turn": 1,
    "redacted": True,
    "synthetic": True,
    "ground_truth": "To eat.",
    "task_type": "closed book",
    "persona_id": 4,
    "character_count": 40,
    "use_cot": False,
    "in_gsm8k_train": True,
    "is_valid_json": False,
    "rules": ["punctuation:no_comma"],
    "fold": 0,
    "usage": {"total_tokens": 5},
    "flags": {"train": False, "all": [{"weight": 0}]},
}


@pytest.mark.parametrize("use", READ)
def test_what_ordinary_data_sets_carry_beside_a_row_is_counted_and_refuses_nothing(tmp_path: Path, use: str) -> None:
    for row in ({"prompt": "Q", "completion": "A"}, {"prompt": "Q", "chosen": "A", "rejected": "B"}):
        if use == "preferences" and "chosen" not in row:
            continue
        rows = READ[use](written(tmp_path, {**row, **ORDINARY}), dropped := Dropped())
        assert len(rows) == 1 and not dropped.counts
        kept = {"category", "id"} if use == "preferences" else {"category"}
        assert dropped.ignored.keys() >= ORDINARY.keys() - kept


def test_a_column_that_is_said_to_mean_nothing_is_read_nowhere_in_a_row(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "Q", "name": "Ann"}
    answer = {"role": "assistant", "content": "A", "tool_calls": [{"name": "look"}], "Deleted": True}
    path = written(tmp_path, {"messages": [turn, answer], "tools": ["x"]})
    ignore = ["toolCalls", "tools", "deleted"]
    [row] = read_demonstrations(path, dropped := Dropped(), "refuse", ignore)
    assert row.messages[1].trained and not dropped.counts
    assert dropped.ignored == {
        name: 1 for name in ("messages[].name", "messages[].tool_calls", "messages[].deleted", "tools")
    }
    with pytest.raises(DataError, match="ignore_columns"):
        read_demonstrations(path, Dropped(), "refuse", ["tool_calls", "deleted"])


@pytest.mark.parametrize("mark", [{"flagged": True}, {"is_safe": False}, {"keep": False}, {"bad": True}], ids=str)
def test_a_mark_against_an_answer_takes_its_loss_and_one_against_a_question_refuses_the_row(
    tmp_path: Path, mark: Any
) -> None:
    turns = [("user", "Q1"), ("assistant", "Bad."), ("user", "Q2"), ("assistant", "Good.")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    path = written(tmp_path, {"messages": [messages[0], {**messages[1], **mark}, *messages[2:]]})
    [row] = read_demonstrations(path, Dropped())
    assert [one.trained for one in row.messages] == [True, False, True, True]
    if mark == {"keep": False}:
        path = written(tmp_path, {"messages": [{**messages[0], **mark}, *messages[1:]]})
        with pytest.raises(DataError, match=r"rows\.jsonl:1: messages\.0\.keep: false takes out what a user says"):
            read_demonstrations(path, Dropped())


# ---- Texts that disagree ----------------------------------------------------------------------------------------


def test_columns_that_repeat_the_conversation_are_read_and_such_that_contradict_it_are_refused(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Which planet?"}, {"role": "assistant", "content": "Jupiter, it is."}]
    for extra in (
        {"prompt": "Which planet?"},
        {"text": "USER Which planet? BOT Jupiter, it is."},
        {"response": " Jupiter,  it is."},
    ):
        assert len(read_demonstrations(written(tmp_path, {"messages": messages, **extra}), Dropped())) == 1
    for name in ("prompt", "instruction", "output", "response", "text", "context", "system"):
        contradicts = {"messages": messages, name: "Something else."}
        if name == "system":
            contradicts["messages"] = [{"role": "system", "content": "Be brief."}, *messages]
        assert fate("demonstrations", written(tmp_path, contradicts), name) == "refused", name
    twice = {"Input": "one", "input": "another", "instruction": "Do.", "output": "Done."}
    assert fate("demonstrations", written(tmp_path, twice), "input") == "refused"


def test_knowledge_beside_a_question_is_refused_and_beside_a_conversation_counted(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert (
        fate("demonstrations", written(tmp_path, {"prompt": "Q", "completion": "A", "knowledge": CANARY}), "knowledge")
        == "refused"
    )
    assert (
        fate("demonstrations", written(tmp_path, {"conversations": messages, "knowledge": CANARY}), "knowledge")
        == "counted"
    )


JSON_TEXTS = [
    json.dumps([{"role": "user", "content": "Which planet?"}]),
    json.dumps([{"from": "human", "value": "Which planet?"}], indent=1),
    str([{"role": "user", "content": "Which planet?"}]),  # as pandas writes it into a CSV file
    json.dumps(["Which planet?"]),
    json.dumps(["Which planet?", "And which moon?"]),
    "[{'from': 'human', 'value': 'Which planet?'}]",
    json.dumps([{"id": 7, "role": "user", "content": "Which planet?"}]),
    str([{"name": "Bo", "from": "human", "value": "Which planet?"}]),
    json.dumps({"messages": [{"role": "user", "content": "Which planet?"}]}),
]


@pytest.mark.parametrize("text", JSON_TEXTS)
@pytest.mark.parametrize("column", ["prompt", "messages", "question", "instruction", "conversations"])
def test_json_text_is_read_as_what_it_is_or_refused_and_never_asked_as_it_stands(
    tmp_path: Path, column: str, text: str
) -> None:
    try:
        rows = read_prompts(written(tmp_path, {column: text}), Dropped())
    except DataError as error:
        assert f"rows.jsonl:1: {column}: " in str(error)
    else:
        assert [message.content for row in rows for message in row.prompt] == ["Which planet?"]


@pytest.mark.parametrize("column", ["completion", "output", "response", "answer", "context", "input", "history"])
@pytest.mark.parametrize("written_as", [json.dumps, str], ids=["JSON", "Python"])
def test_messages_as_text_are_never_trained_as_they_stand(tmp_path: Path, column: str, written_as: Any) -> None:
    role = "user" if column in ("context", "input", "history") else "assistant"
    text = written_as([{"role": role, "content": "Jupiter."}])
    row = {"prompt": "Which planet?", "completion": "Jupiter.", column: text}
    if column != "completion" and role == "assistant":
        del row["completion"]
    try:
        rows = read_demonstrations(written(tmp_path, row), Dropped())
    except DataError as error:
        assert f"rows.jsonl:1: {column}: " in str(error)
    else:
        assert [[message.content for message in one.messages] for one in rows] == [["Which planet?", "Jupiter."]]


@pytest.mark.parametrize("mark", [{"deleted": True}, {"status": "rejected"}, {"state": "aborted"}], ids=str)
def test_a_turn_that_was_taken_out_is_read_and_not_imitated(tmp_path: Path, mark: Any) -> None:
    asked, bad = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Bad.", **mark}
    messages = [asked, bad, asked, {"role": "assistant", "content": "Good."}]
    [row] = read_demonstrations(written(tmp_path, {"messages": messages}), Dropped())
    assert [(one.content, one.trained) for one in row.messages[1::2]] == [("Bad.", False), ("Good.", True)]


def test_an_answer_that_is_a_list_of_texts_is_read_as_its_question_is(tmp_path: Path) -> None:
    row = {"prompt": '["Why?"]', "completion": '["So."]'}
    [one] = read_demonstrations(written(tmp_path, row), Dropped())
    assert [message.content for message in one.messages] == ["Why?", "So."]
    row = {"prompt": '["Why?"]', "chosen": '["So."]', "rejected": '["No."]'}
    [ranking] = read_preferences(written(tmp_path, row), Dropped())
    assert sorted(ranking.completions) == ["No.", "So."] and ranking.prompt[0].content == "Why?"


def test_an_answer_that_is_json_stays_text(tmp_path: Path) -> None:
    for text in (
        '["a", "b"]',
        '{"role": "engineer", "content": "x"}',
        '{"name": "x", "role": "user"}',
        '[{"name": "x"}]',
        "[1, 2]",
    ):
        [row] = read_demonstrations(written(tmp_path, {"prompt": "Give JSON.", "completion": text}), Dropped())
        assert row.messages[1].content == text


@pytest.mark.parametrize("answer", ['["a"]', '["a", "b"]', "[1, 2]", '{"role": "engineer", "content": "x"}'])
def test_an_answer_that_is_json_stays_text_in_a_comparison_too(tmp_path: Path, answer: str) -> None:
    for one, other, verdict in (("chosen", "rejected", {}), ("response_a", "response_b", {"winner": "a"})):
        row = {"prompt": "Give JSON.", one: answer, other: '["z"]', **verdict}
        [ranking] = read_preferences(written(tmp_path, row), Dropped())
        assert {ranking.completions[i] for [i] in ranking.tiers} == {answer, '["z"]'}
        assert ranking.completions[ranking.tiers[0][0]] == answer


@pytest.mark.parametrize(
    "text",
    [
        '[{"content": "Jupiter: \\"J\\".", "role": "assistant"}]',
        '{"role": "assistant", "content": "Jupiter: \\"J\\"."}',
    ],
)
def test_messages_as_text_are_read_whichever_key_stands_first(tmp_path: Path, text: str) -> None:
    [row] = read_demonstrations(written(tmp_path, {"prompt": "Which planet?", "completion": text}), Dropped())
    assert row.messages[-1].content == 'Jupiter: "J".'


def test_rows_within_a_row_are_no_conversation(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "output": "3"}, {"instruction": "Sing.", "output": "La"}]
    for name in ("data", "train", "rows"):
        with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{name}"):
            read_demonstrations(written(tmp_path, {name: rows}), Dropped())


MARKED = [
    "Human: Which planet?\n\nAssistant:",
    "\n\nHuman: Which planet?\n\nAssistant: ",
    "### Human: Which planet?### Assistant:",
    "<|im_start|>user\nWhich planet?<|im_end|>\n<|im_start|>assistant\n",
    "[INST] Which planet? [/INST]",
    "<s>[INST] Which planet? [/INST]",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhich planet?<|eot_id|>",
    "<start_of_turn>user\nWhich planet?<end_of_turn>",
    "<|user|>\nWhich planet?</s>\n<|assistant|>",
    "### Instruction:\nWhich planet?\n\n### Response:",
    "Below is an instruction.\n\n### Instruction:\nWhich planet?\n\n### Response:\n",
    "USER: Which planet? ASSISTANT:",
    "A chat.\n\nHuman: Which planet?\n\nAssistant:",
]


@pytest.mark.parametrize("text", MARKED)
def test_a_prompt_in_the_marks_of_a_template_is_read_as_its_turns_or_refused(tmp_path: Path, text: str) -> None:
    try:
        [row] = read_prompts(written(tmp_path, {"prompt": text}), Dropped())
    except DataError as error:
        assert "rows.jsonl:1: prompt: " in str(error)
    else:
        assert [(one.role, one.content) for one in row.prompt] == [("user", "Which planet?")]


def test_a_prompt_about_such_marks_stays_text(tmp_path: Path) -> None:
    text = "What does <|im_start|> mean, and [INST], after `Human:`?\n\nAnswer briefly."
    [row] = read_prompts(written(tmp_path, {"prompt": text}), Dropped())
    assert row.prompt[0].content == text


@pytest.mark.parametrize("value", [0, 0.0, False, 5], ids=str)
@pytest.mark.parametrize("column", ["input", "Input", "option_a"])
def test_a_number_is_asked_or_refused_and_never_left_out_for_being_0(tmp_path: Path, column: str, value: Any) -> None:
    row = {"instruction": "Double it.", "output": "0", "option_b": "x", "option_c": "y", column: value}
    for use in ("demonstrations", "prompts"):
        with pytest.raises(DataError, match=f"rows.jsonl:1: {column}: expected text, found"):
            READ[use](written(tmp_path, row), Dropped())


@pytest.mark.parametrize("values", [(False, True), (0, 1), (True, False)], ids=str)
def test_a_column_that_stands_twice_is_refused_where_one_says_no_and_the_other_yes(tmp_path: Path, values: Any) -> None:
    row = {"prompt": "Q", "completion": "A"} | dict(zip(("is_correct", "isCorrect"), values, strict=True))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: isCorrect: the row has a column is_correct too, and they say"):
        read_demonstrations(written(tmp_path, row), Dropped())
    for nothing in EMPTY:
        rows = read_demonstrations(written(tmp_path, row | {"isCorrect": nothing}), Dropped())
        assert len(rows) == bool(values[0])


def test_a_whole_number_may_be_written_with_a_point_as_tables_with_empty_cells_write_it(tmp_path: Path) -> None:
    def node(rank: Any) -> dict[str, Any]:
        return {"message_id": "m", "role": "assistant", "text": f"the {rank}th", "rank": rank}

    pair = {"prompt": "Q", "response_1": "x", "response_2": "y"}
    talk = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    sides = [[*talk, {"role": "assistant", "content": text}] for text in ("x", "y")]
    judged = {"conversation_a": sides[0], "conversation_b": sides[1], "winner": "model_a"}
    rows: list[Any] = [
        {"info": {"post": "P"}, "summaries": [{"text": "x"}, {"text": "y"}], "choice": 1},
        {**pair, "overall_preference": 2},
        {**pair, "preference": 2},
        {"prompt": {"message_id": "r", "role": "prompter", "text": "Q", "replies": [node(1), node(0)]}}
        | {"message_tree_id": "t"},
        {**judged, "turn": 2},
    ]

    def as_floats(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: as_floats(inner) for key, inner in value.items()}
        return (
            [as_floats(one) for one in value]
            if isinstance(value, list)
            else float(value)
            if value in (0, 1, 2)
            else value
        )

    for row in rows:
        as_int, as_float = (read_preferences(written(tmp_path, one), Dropped()) for one in (row, as_floats(row)))
        assert [one.tiers for one in as_int] == [one.tiers for one in as_float] and as_int
    asks = {"question": "Which?", "choices": ["x", "y"], "answer": 1.0}
    assert read_demonstrations(written(tmp_path, asks), Dropped())[0].messages[-1].content == "B"
    for turn in (0, 3, "2", 1.5):  # which of the answers was judged cannot be known
        with pytest.raises(DataError, match="turn: expected the number of the judged turn, 1 to 2"):
            read_preferences(written(tmp_path, {**judged, "turn": turn}), Dropped())


def test_a_text_of_any_length_is_read_in_a_time_that_grows_with_it(tmp_path: Path) -> None:
    """A model that repeats itself writes thousands of line breaks; a search that begins at each of them takes hours."""
    started = time.process_time()
    for pad in ("\n", " ", "\n\nHuman: ", "<|im_start|>user\n", "### ", '{"role": '):
        run = pad * (40_000 // len(pad))
        for text in (f"{run}x", f"x{run}x", f"x{run}", f"<|im_start|>user\nx<|im_end|>{run}x"):
            for use, row in (
                ("demonstrations", {"prompt": "Q", "completion": text}),
                ("prompts", {"prompt": text}),
                ("preferences", {"prompt": "Q", "chosen": text, "rejected": "B"}),
            ):
                with suppress(DataError):
                    READ[use](written(tmp_path, row), Dropped())
    assert time.process_time() - started < 20


# ---- Anything at all --------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.0,
    1.5,
    10**30,
    "",
    " ",
    "[",
    '["a", "b"]',
    '[{"role": 1}]',
    [],
    [None],
    [[]],
    [["a", 1]],
    {},
    {"a": 1},
]
ODD += [["a", 1], [{}], [{"role": "user"}], [{"role": 1, "content": "x"}], [{"from": "human", "value": ["a"]}]]
ODD += [{"role": ["user"], "content": ["x", "y"]}, {"text": [1], "label": "A"}, {"messages": "x"}, {"full_text": 3}]
ODD += [
    [{"text": "x", "rank": "a"}],
    [{"value": [1]}],
    [{"result": [{"type": "pairwise", "value": 3}]}],
    "<|im_start|>x",
]
OTHERS = "ranks scores completions answers response_a response_b output_1 output_2 conversation_a conversation_b winner"
OTHERS += " turn annotator1 data annotations fields responses info summaries choice examples instances turns role text"
OTHERS += " message_tree_id message_id parent_id helpfulness tiers strength tie score_chosen score_rejected option_a"
OTHERS += " display_order"


def odd_rows(seed: int) -> Iterator[Any]:
    rng = random.Random(seed)
    names = [
        *OTHERS.split(),
        *(name for names in vars(vocabulary).values() if isinstance(names, list) for name in names),
    ]

    def places(value: Any) -> Iterator[tuple[Any, Any]]:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield value, key
            yield from places(value[key])

    for _, _, row in examples():
        for _ in range(25):
            changed = json.loads(json.dumps(row))
            within, key = rng.choice(list(places(changed)))
            within[key] = rng.choice(ODD)
            changed |= {name: rng.choice(ODD) for name in rng.sample(names, rng.randrange(3))}
            yield changed


@pytest.mark.parametrize("use", READ)
def test_no_row_is_so_odd_that_its_error_is_a_traceback(tmp_path: Path, use: str) -> None:
    outcomes = set()
    for row in odd_rows(seed=1):
        try:
            READ[use](written(tmp_path, row), Dropped())
            outcomes.add("read")
        except DataError as error:
            assert str(error).startswith(f"{tmp_path}/rows.jsonl:1: ")
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


# ---- The cases --------------------------------------------------------------------------------------------------

SHAPES = json.loads((CASES / "shapes.json").read_text(encoding="utf-8"))
REFUSED = """
    d_sharegpt_empty_or_open d_messages_reasoning_content d_messages_images d_messages_function_role
    d_text d_prompt_messages_two_fit d_trueup_candidates p_text_only r_trl_implicit_text r_trl_kto
    r_trl_images r_hh_history_differs
""".split()
"""Shapes that Trueup does not read. All others are read as shapes.json says."""


@pytest.mark.parametrize("case", SHAPES, ids=[case["file"] for case in SHAPES])
def test_the_shapes_of_public_data_sets_are_read_as_they_mean_or_refused_with_a_remedy(case: dict[str, Any]) -> None:
    outcome = shapes.judge(case, CASES)
    assert outcome.verdict == ("refused" if Path(case["file"]).stem in REFUSED else "right"), outcome.why


def test_the_figure_is_printed_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert shapes.main(CASES) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "191 files: 179 right, 12 refused, 0 wrong"


U = "Greet me."
ROWS: dict[str, Any] = {
    "d.csv": [["Say 1", "1"]],
    "d_UPPER.JSONL": [["Say 1", "1"]],
    "d_bom_crlf.jsonl": [["Say 0", "0"], ["Say 1", "1"], ["Say 2", "2"]],
    "d_empty_system.jsonl": [["", "Say hi.", "Hi."]],
    "d_ends_user.jsonl": "messages: turns must alternate user, assistant and end with assistant",
    "d_indented_code.jsonl": [["def add(a, b):\n", "    return a + b\n"]],
    "d_late_system.jsonl": "messages: turns must alternate user, assistant and end with assistant",
    "d_mid_system.jsonl": [["Say hi.", "Be brief.", "Hi."]],
    "d_nan.jsonl": "input: NaN is no JSON number",
    "d_null_input.jsonl": [["Add.", "3"]],
    "d_numeric.jsonl": "output: expected text or messages, found 3",
    "d_starts_gpt.jsonl": "conversations: turns must alternate",
    "d_two_systems.jsonl": [["Be brief.", "Be kind.", "Say hi.", "Hi."]],
    "d_upper_roles.jsonl": [["Say hi.", "Hi."]],
    "d_utf16.jsonl": [["Say 0", "0"], ["Say 1", "1"], ["Say 2", "2"]],
    "f_annotator0.jsonl": [
        [U, "0", [[0], [1]]],
        [U, "1", [[1], [0]]],
        [U, "2", [[0], [1]]],
        [U, "unknown", [[0], [1]]],
    ],
    "f_emoji_rtl.jsonl": None,
    "f_hh_human_inside.jsonl": "rejected: expected one assistant turn after the prompt",
    "f_list_rejected.jsonl": "rejected: expected text or messages, found a list of 2 texts",
    "f_lone_surrogate.jsonl": "prompt: not Unicode text",
    "f_margin.jsonl": [[U, "unknown", [[0], [1]]], ["Greet me twice.", "unknown", [[0], [1]]]],
    "f_nul.jsonl": "chosen: holds the character NUL",
    "f_nul_annotator.jsonl": "annotator: holds the character NUL",
    "f_pandalm_float.jsonl": [[U, "annotator1", [[0], [1]]], [U, "annotator2", [[0, 1]]]],
    "f_pandalm_null.jsonl": [[U, "annotator1", [[0], [1]]]],
    "f_prompt_ws.jsonl": [["Greet me. ", "unknown", [[1], [0]]]],
    "f_same.jsonl": [[U, "unknown", [[0], [1]]]],
    "f_same_ws.jsonl": [[U, "unknown", [[0], [1]]]],
    "f_scores_tie.jsonl": [[U, "unknown", [[1, 0]]]],
    "f_spelled.jsonl": None,
    "f_turn_mismatch.jsonl": "chosen: expected one assistant turn after the prompt",
    "p_nfc.jsonl": None,
    "p_system_tail.jsonl": [["Say hi.", "Be brief."]],
    "p_ws.jsonl": [["Write a haiku."], ["Write  a haiku."]],
}
"""What a file with one oddity reads as (None: whatever it says), or the start of the problem that it is refused for."""


@pytest.mark.parametrize("name", sorted(path.name for path in (CASES / "rows").iterdir()))
def test_a_row_with_an_oddity_is_read_as_it_stands_or_refused_by_line_and_column(name: str) -> None:
    path = CASES / "rows" / name
    read = READ[{"d": "demonstrations", "p": "prompts", "f": "preferences"}[name[0]]]
    expected = ROWS[name]
    if isinstance(expected, str):
        with pytest.raises(DataError) as error:
            read(path, Dropped())
        assert str(error.value).startswith(f"{path}:1: {expected}")
        return
    rows = read(path, Dropped())
    if expected is None:
        assert rows
    elif name.startswith("f"):
        assert [[row.prompt[0].content, row.annotator, row.tiers] for row in rows] == expected
    else:
        messages = [getattr(row, "messages", None) or row.prompt for row in rows]
        assert [[message.content for message in one] for one in messages] == expected
