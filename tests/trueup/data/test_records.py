"""Rows on disk: the split that all stages share, pairs of rankings, and what is said of a broken file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trueup.config import STARTER, SplitConfig
from trueup.data.containers.appended import Growing, append_rows
from trueup.data.formats import read_demonstrations, read_prompts
from trueup.data.pairs import choose_pairs, pairs_of
from trueup.data.records import (
    Demonstration,
    Dropped,
    Message,
    Preference,
    Prompt,
    Ranking,
    parse_row,
    prompt_id,
    read_jsonl,
    read_rows,
    shuffled,
    write_rows,
)
from trueup.data.split import is_for_judge, is_heldout, opening_id, split_name, touches_heldout
from trueup.errors import DataError

SPLIT = SplitConfig()
CASES = Path(__file__).parents[2] / "data" / "cases" / "rows"


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


# ---- Split ------------------------------------------------------------------------------------------------------


def test_a_prompt_is_the_same_whatever_cannot_be_seen_and_another_with_any_other_change() -> None:
    assert prompt_id(user("Why is the \u200bsky blue? \r\n")) == prompt_id(user("Why is the sky blue?"))
    others = [
        user("Why is the  sky blue?"),
        user("Why is the\nsky blue?"),
        user("Why is the sky Blue?"),
        user("Why is the sky blue"),
        [Message(role="system", content="Why is the sky blue?")],
        [*user("Why is the"), Message(role="assistant", content="sky blue?")],
        [*user("Why is the"), *user("sky blue?")],
    ]
    assert len({prompt_id(prompt) for prompt in [user("Why is the sky blue?"), *others]}) == 8


@pytest.mark.parametrize(
    ("text", "identity", "split"),
    [
        ("Why is the sky blue?", "9d67aaa2fe15c4d0", "train"),
        ("Say red.", "39bdf6ed117bf7d5", "train"),
        ("Übersetze: ¿qué?", "0f5fef8a72ef311c", "train"),
        ("Say 0.", "558398a8c67deb3b", "heldout"),
    ],
)
def test_the_split_never_changes_or_old_runs_would_train_on_what_they_held_out(
    text: str, identity: str, split: str
) -> None:
    assert (prompt_id(user(text)), split_name(user(text), SPLIT)) == (identity, split)


def test_the_held_out_share_is_near_what_was_asked_and_the_salt_draws_another() -> None:
    prompts = [user(f"question {i}") for i in range(2000)]
    shares = [
        sum(is_heldout(p, SplitConfig(heldout_fraction=f)) for p in prompts) / 2000 for f in (0.0, 0.1, 0.25, 0.9)
    ]
    assert shares == pytest.approx([0.0, 0.1, 0.25, 0.9], abs=0.03)
    both = sum(is_heldout(p, SPLIT) and is_heldout(p, SplitConfig(salt="another")) for p in prompts) / 2000
    assert both == pytest.approx(0.25 * 0.25, abs=0.02)


def test_a_prompt_that_is_held_out_stays_so_when_the_share_grows() -> None:
    prompts = [user(f"question {i}") for i in range(200)]
    small = {prompt_id(p) for p in prompts if is_heldout(p, SplitConfig(heldout_fraction=0.2))}
    large = {prompt_id(p) for p in prompts if is_heldout(p, SplitConfig(heldout_fraction=0.3))}
    assert small < large


def dialogue(*turns: str, system: str | None = None) -> list[Message]:
    roles = ["user", "assistant"] * len(turns)
    spoken = [Message(role=role, content=text) for role, text in zip(roles, turns, strict=False)]
    return [*([Message(role="system", content=system)] if system else []), *spoken]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.6])
def test_every_part_and_every_continuation_of_a_dialogue_is_on_the_side_of_its_first_question(fraction: float) -> None:
    split = SplitConfig(heldout_fraction=fraction, judge_fraction=0.2)
    sides = set()
    for i in range(60):
        whole = dialogue(f"question {i}", f"answer {i}", f"more {i}", "well", "and then?", "done")
        asked = [dialogue(*(message.content for message in whole[:n])) for n in (1, 3, 5)]
        asked += [dialogue(f"question {i}", "another answer", "another question")]
        asked += [dialogue(f"question {i}", system="You are terse."), dialogue(f" question\u200b  {i}\n")]
        assert len({prompt_id(prompt) for prompt in asked}) == 6, "each is a prompt of its own"
        assert len({(is_heldout(prompt, split), is_for_judge(prompt, split)) for prompt in asked}) == 1
        assert touches_heldout(Demonstration(messages=whole), split) is is_heldout(asked[0], split)
        assert len({opening_id(prompt) for prompt in asked}) == 1
        sides.add((is_heldout(asked[0], split), is_for_judge(asked[0], split)))
    assert sides == {(True, False), (False, True), (False, False)}


def test_a_prompt_in_any_normal_form_is_one_prompt_on_one_side() -> None:
    rows = [parse_row(Prompt, values, "") for _, values in read_jsonl(CASES / "p_nfc.jsonl")]
    assert len({row.prompt_id for row in rows}) == 1 and len({row.prompt[0].content for row in rows}) > 1
    assert len(read_prompts(CASES / "p_nfc.jsonl", Dropped())) == 1
    for fraction in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert len({is_heldout(row.prompt, SplitConfig(heldout_fraction=fraction)) for row in rows}) == 1


def test_programs_that_differ_in_their_indentation_are_two_prompts_on_one_side(tmp_path: Path) -> None:
    code = "What does this print?\n\nfor i in range(2):\n    x = i\n{}print(x)"
    prompts = [user(code.format(indentation)) for indentation in ("", "    ", "        ", "\t")]
    assert len({prompt_id(prompt) for prompt in prompts}) == 4 and len({opening_id(prompt) for prompt in prompts}) == 1
    for fraction in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert len({is_heldout(prompt, SplitConfig(heldout_fraction=fraction)) for prompt in prompts}) == 1
    path = tmp_path / "code.jsonl"
    write_rows(path, [{"prompt": prompt[0].content} for prompt in prompts])
    rows = read_prompts(path, dropped := Dropped())
    assert [row.prompt for row in rows] == prompts and not dropped.counts


def test_no_held_out_prompt_of_the_starter_set_is_trained_on() -> None:
    prompts = {row.prompt_id: row for row in read_prompts(STARTER / "prompts.jsonl", Dropped())}
    heldout = {identity for identity, row in prompts.items() if is_heldout(row.prompt, SPLIT)}
    assert len(heldout) >= 80 and len(prompts) - len(heldout) >= 240
    demonstrations = read_demonstrations(STARTER / "demonstrations.jsonl", Dropped())
    train = [row for row in demonstrations if not touches_heldout(row, SPLIT)]
    trained_on = {prompt_id(row.messages[:-1]) for row in train} | {opening_id(row.messages) for row in train}
    assert len(train) > 200 and not trained_on & heldout


# ---- Pairs ------------------------------------------------------------------------------------------------------


def ranking(*tiers: list[int], answers: int = 5) -> Ranking:
    return Ranking(
        label_id="l",
        prompt_id="p",
        prompt=user("Which?"),
        split="train",
        completions=[f"answer {i}" for i in range(answers)],
        completion_token_ids=[[i] for i in range(answers)],
        finished=[i != 2 for i in range(answers)],
        tiers=list(tiers),
        source="human",
        annotator="ann",
        created_utc="2026-01-01T00:00:00Z",
    )


def named(pairs: list[Preference]) -> list[str]:
    """`0>2` for answer 0 preferred to answer 2."""
    return [f"{p.chosen[0].content[-1]}>{p.rejected[0].content[-1]}" for p in pairs]


def test_a_ranking_gives_every_strict_pair_and_none_for_a_tie_or_an_answer_left_out() -> None:
    pairs = pairs_of(ranking([3], [0, 2], [1]))
    assert named(pairs) == ["3>0", "3>2", "3>1", "0>1", "2>1"]
    best_tie = pairs[1]
    assert (best_tie.chosen_token_ids, best_tie.rejected_token_ids) == ([3], [2])
    assert (best_tie.chosen_finished, best_tie.rejected_finished) == (True, False), "the end of each answer is its own"
    assert (best_tie.chosen_rank, best_tie.rejected_rank, best_tie.num_tiers) == (0, 1, 3)
    assert pairs_of(ranking([0, 1, 2])) == []


@pytest.mark.parametrize(
    ("tiers", "extremes", "nested"),
    [
        ([[3], [1], [0], [2]], ["3>2"], ["3>2", "1>0"]),
        ([[3], [1], [0]], ["3>0"], ["3>0"]),
        ([[0, 1], [2]], ["0>2"], ["0>2"]),
        ([[0, 1], [2, 3]], ["0>2"], ["0>2", "1>3"]),
        ([[4], [0, 1], [2], [3]], ["4>3"], ["4>3", "0>2"]),
        ([[0], [1]], ["0>1"], ["0>1"]),
    ],
)
def test_extremes_and_nested_choose_the_pairs_that_they_say(
    tiers: list[list[int]], extremes: list[str], nested: list[str]
) -> None:
    pairs = pairs_of(ranking(*tiers))
    assert named(choose_pairs(pairs, "all")) == named(pairs)
    assert named(choose_pairs(pairs, "extremes")) == extremes
    assert named(choose_pairs(pairs, "nested")) == nested


def test_pairs_are_chosen_within_each_ranking_and_not_across_them() -> None:
    pairs = [
        pair for label in ("l", "m") for pair in pairs_of(ranking([0], [1], [2]).model_copy(update={"label_id": label}))
    ]
    assert [(p.label_id, *named([p])) for p in choose_pairs(pairs, "extremes")] == [("l", "0>2"), ("m", "0>2")]


# ---- Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages" 1}', "rows.jsonl:3: not JSON (Expecting ':' delimiter at column 13)"),
        ('{"messages": []}', "rows.jsonl:3: turns must alternate user, assistant and end with assistant; found none"),
        (
            '{"messages": [{"role": "user", "content": "hi"}]}',
            "turns must alternate user, assistant and end with assistant; found user",
        ),
        (
            '{"messages": [{"role": "robot", "content": "hi"}]}',
            "rows.jsonl:3: messages.0.role: Input should be 'system', 'user', 'assistant' or 'tool'",
        ),
        ("{}", "rows.jsonl:3: messages: Field required"),
        ("[]", "rows.jsonl:3: Input should be a valid dictionary or instance of Demonstration"),
        (
            '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]}',
            "rows.jsonl:3: an assistant turn is empty",
        ),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(
    tmp_path: Path, jsonl: Callable[..., Path], line: str, said: str
) -> None:
    good = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    path = jsonl(tmp_path / "rows.jsonl", [good, "", line])
    with pytest.raises(DataError) as caught:
        read_rows(path, Demonstration)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_a_missing_file_and_one_that_is_not_utf8_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file$"):
        read_rows(tmp_path / "none.jsonl", Prompt)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl: not UTF-8 \(.* at byte \d+\)$"):
        read_rows(tmp_path / "latin.jsonl", Prompt)


def test_rows_come_back_as_they_were_written_whatever_their_text_holds(tmp_path: Path) -> None:
    texts = ["plain", "two\nlines\r\n", "\u2028\u2029\x85\x0b\x0c\x1e", 'quote " back \\ slash', "日本語 🙂", "\x00"]
    rows = [Prompt(prompt=user(text + "?")) for text in texts]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", Prompt) == rows


def test_a_file_that_could_not_be_written_to_its_end_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"a": 1}])

    def broken() -> Iterator[dict[str, Any]]:
        yield {"a": 2}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_rows(path, broken())
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}]


def test_a_prompt_may_be_written_as_text_and_unknown_columns_are_ignored() -> None:
    row = parse_row(Prompt, {"prompt": "Why?", "id": 3}, "here")
    assert row == Prompt(prompt=user("Why?"))
    assert row.prompt_id == prompt_id(user("Why?"))


def test_a_growing_file_gives_each_row_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "answered.partial"
    growing = Growing(path, Prompt)
    assert growing.more() == []
    one, two, three = (Prompt(prompt=[Message(role="user", content=f"line\u2028{i}")]) for i in range(3))
    append_rows(path, [one])
    assert growing.more() == [one] and growing.more() == []
    line = two.model_dump_json().encode() + b"\n"
    with path.open("ab") as file:
        for part in (line[:5], line[5:-1]):
            file.write(part)
            file.flush()
            assert growing.more() == []
        file.write(line[-1:])
    append_rows(path, [three])
    path.unlink()
    assert growing.more() == [two, three], "whoever writes it may remove it before it is read to its end"
    growing.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_part_of_the_prompts_is_in_the_order_that_it_has_among_all(seed: int) -> None:
    rows = [Prompt(prompt=[Message(role="user", content=str(i))]) for i in range(40)]
    whole = shuffled(rows, seed)
    assert whole != rows and shuffled(rows[::-1], seed) == whole != shuffled(rows, seed + 1)
    assert shuffled(rows[7:23], seed) == [row for row in whole if row in rows[7:23]]
