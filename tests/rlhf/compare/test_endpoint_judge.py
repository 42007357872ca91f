"""A judge behind an endpoint, good and bad ones: a real local server answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.compare.answers import Verdicts
from rlhf.compare.endpoint_judge import GIVE_UP_AFTER, choose_pairs, endpoint_tables
from trueup.config import EndpointParameters
from trueup.data.records import Candidate, CandidateSet, Message
from trueup.errors import DataError, ModelError
from trueup.judging.endpoint import Endpoint
from trueup.judging.question import agreement, question, read_mark

Judge = Callable[..., Verdicts]


@pytest.fixture
def judge(server: Any, tmp_path: Path) -> Judge:
    """`judge(say, reference, aligned)`: texts of the answers, one list a prompt; verdicts are kept unless `kept` names
    another file."""

    def run(
        say: Any, reference: list[list[str]], aligned: list[list[str]], kept: str = "judge.jsonl", **options: Any
    ) -> Verdicts:
        server.say = say
        parameters = EndpointParameters(timeout_s=options.pop("timeout_s", 10.0), **options.pop("parameters", {}))
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1/", "big-judge", parameters)
        rows = [prompt(p) for p in range(len(reference))]
        return endpoint_tables(endpoint, rows, candidates(reference), candidates(aligned), tmp_path / kept, **options)

    return run


def prompt(p: int) -> CandidateSet:
    asked = [Message(role="user", content=f"Prompt {p}?")]
    return CandidateSet(prompt_id=f"id-{p}", prompt=asked, split="heldout", candidates=[], sampler={})


def candidates(texts: list[list[str]]) -> list[list[Candidate]]:
    return [[Candidate(text=text, token_ids=[1], finished=True) for text in row] for row in texts]


def prefers_longer(a: str, b: str) -> str:
    return "[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]"


def without_verdict(judgement: Verdicts) -> int:
    own = judgement.own
    return (own.refused or 0) + (own.cut or 0) + (own.malformed or 0) + sum((own.failed or {}).values())


def codes(judgement: Verdicts) -> list[str]:
    return [note.code for note in judgement.findings]


SHORT, LONG = [["no"]] * 30, [["yes indeed"]] * 30


def numbered(texts: list[list[str]]) -> list[list[str]]:
    """Every prompt its own answers, so that no question is asked twice."""
    return [[f"{text} {p:02}" for text in row] for p, row in enumerate(texts)]


# ---- Verdicts ---------------------------------------------------------------------------------------------------


def test_a_win_needs_both_orders(judge: Judge, server: Any) -> None:
    found = judge(prefers_longer, [["aa"], ["aaaa"], ["aa"]], [["bbb"], ["b"], ["bb"]])
    assert [table.tolist() for table in found.tables] == [[[1.0]], [[0.0]], [[0.5]]]
    assert len(server.asked) == 6 and found.own.contradictions == without_verdict(found) == 0 and found.findings == []
    assert found.own.position_bias is not None and (found.own.position_bias.value, found.own.position_bias.n) == (
        0.5,
        4,
    )
    assert {body["model"] for body in server.asked} == {"big-judge"} and server.asked[0]["temperature"] == 0


def test_a_win_against_a_tie_in_the_other_order_is_a_tie() -> None:
    assert [agreement("A", "B"), agreement("B", "A")] == [1, 0]
    assert {agreement(*marks) for marks in (("A", "A"), ("B", "B"), ("C", "C"), ("A", "C"), ("C", "A"))} == {0.5}


def test_the_last_mark_is_the_verdict() -> None:
    assert read_mark("[[A]] is longer, yet: [[B]]") == "B" and read_mark("A") is None and read_mark("") is None


def test_equal_answers_tie_without_a_question(judge: Judge, server: Any) -> None:
    found = judge(prefers_longer, [["same"]], [["same"]])
    assert found.tables[0].tolist() == [[0.5]] and server.asked == [] and found.own.position_bias is None


def test_a_judge_that_always_says_a_is_at_half_with_its_bias_shown(judge: Judge) -> None:
    found = judge(lambda a, b: "[[A]]", numbered(SHORT), numbered(LONG))
    assert np.mean(found.tables) == 0.5 and found.own.contradictions == found.own.comparisons == 30
    bias = found.own.position_bias
    assert bias is not None and bias.ci_low is not None
    assert bias.value == 1 and bias.ci_low > 0.9
    assert codes(found) == ["judge_position_bias"]
    said = found.findings[0].message
    assert "100% of its decided verdicts went to the first" in said and "30 of 30 comparisons it contradicts" in said


def test_a_judge_of_the_second_place_is_named_too(judge: Judge) -> None:
    found = judge(lambda a, b: "[[B]]", numbered(SHORT), numbered(LONG))
    assert "went to the second" in found.findings[0].message


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 100])
def test_swapped_policies_turn_every_verdict_round(judge: Judge, pairs: int) -> None:
    # "b" and "dd" are said by both policies, at other places; the judge is moody, but the same for the same question.
    reference = [["a", "b", "ccc"], ["dd", "b", "f"], ["b", "dd", "b"], ["b", "dd", "ccc"]]
    aligned = [["b", "dd", "ccc"], ["b", "dd", "g"], ["dd", "b", "dd"], ["b", "dd", "ccc"]]

    def moody(a: str, b: str) -> str:
        return "[[" + "ABC"[hash_of(a, b) % 3] + "]]"

    there = judge(moody, reference, aligned, pairs_per_prompt=pairs, seed=3)
    back = judge(moody, aligned, reference, kept="swapped.jsonl", pairs_per_prompt=pairs, seed=3)
    for one, other in zip(there.tables, back.tables, strict=True):
        np.testing.assert_array_equal(other, 1 - one.T)
        assert np.isnan(np.diag(one)).all()
        assert (~np.isnan(one)).sum() >= min(pairs, 6)
    assert there.own.position_bias == back.own.position_bias


def hash_of(a: str, b: str) -> int:
    return sum((i + 1) * ord(c) for i, c in enumerate(f"{a}|{b}"))


def test_pairs_are_drawn_by_seed_and_never_from_the_diagonal() -> None:
    reference, aligned = [f"r{k}" for k in range(4)], [f"a{k}" for k in range(4)]
    for count in range(1, 12):
        chosen = choose_pairs(reference, aligned, count, "0/x")
        assert len(chosen) == len(set(chosen)) == count and all(i != j for i, j in chosen)
        assert chosen == choose_pairs(reference, aligned, count, "0/x")
    drawn = {choose_pairs(reference, aligned, 1, f"{seed}/x")[0] for seed in range(200)}
    assert drawn == {(i, j) for i in range(4) for j in range(4) if i != j}
    assert choose_pairs(["r"], ["a"], 3, "0/x") == [(0, 0)]


# ---- What goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("I like both.", "malformed"),
        ("", "malformed"),
        ("\ud800", "malformed"),
        (b"<html>not JSON", "malformed"),
        ({"choices": []}, "malformed"),
        ({"choices": [{"message": {"content": ["[[A]]"]}}]}, "malformed"),
        ("I'm sorry, but I can't compare these.", "refused"),
        ({"choices": [{"message": {"content": None, "refusal": "I will not."}}]}, "refused"),
        ({"choices": [{"message": {"content": "[[A"}, "finish_reason": "content_filter"}]}, "refused"),
        ({"choices": [{"message": {"content": "[[A]] since"}, "finish_reason": "length"}]}, "cut"),
        ("<think>First I thought [[A]], but", "cut"),
        (500, "http 500"),
        (400, "http 400"),
    ],
)
def test_a_comparison_without_a_verdict_is_counted_by_what_went_wrong(judge: Judge, said: Any, kind: str) -> None:
    reference, aligned = numbered([["aa"]] * 10), numbered([["bbb"]] * 10)
    found = judge(lambda a, b: said if "03" in a else prefers_longer(a, b), reference, aligned)
    missing = [bool(np.isnan(table).all()) for table in found.tables]
    assert missing == [p == 3 for p in range(10)] and all(found.tables[p] == 1 for p in range(10) if p != 3)
    counts = {
        "refused": found.own.refused,
        "cut": found.own.cut,
        "malformed": found.own.malformed,
        **(found.own.failed or {}),
    }
    assert {key: count for key, count in counts.items() if count} == {kind: 1} and without_verdict(found) == 1
    assert codes(found) == ["judge_without_verdict"] and f"1 of 10 comparisons (1 {kind})" in found.findings[0].message
    assert ("raise judge_parameters.max_tokens" in found.findings[0].message) == (kind == "cut")


def test_a_judge_that_is_asked_otherwise_is_asked_anew(judge: Judge, server: Any) -> None:
    judge(prefers_longer, [["aa"]], [["bbb"]])
    judge(prefers_longer, [["aa"]], [["bbb"]], parameters={"temperature": None, "max_tokens": 9})
    assert [body.get("temperature") for body in server.asked] == [0, 0, None, None]


def test_a_judge_that_mostly_gives_no_verdict_is_not_usable(judge: Judge) -> None:
    reference, aligned = numbered([["aa"]] * 8), numbered([["bbb"]] * 8)
    found = judge(lambda a, b: "I cannot." if a < "aa 02" else prefers_longer(a, b), reference, aligned)
    assert (found.own.refused, found.own.comparisons) == (2, 8)
    assert codes(found) == ["judge_not_usable"] and found.findings[0].level == "warn"


def test_a_judge_that_times_out_is_survived_and_not_asked_for_ever(judge: Judge, server: Any) -> None:
    release = threading.Event()

    def hang(a: str, b: str) -> str:
        release.wait(5)
        return "[[A]]"

    found = judge(hang, numbered(SHORT), numbered(LONG), timeout_s=0.05)
    release.set()
    assert np.isnan(found.tables).all() and without_verdict(found) == 30 and found.own.position_bias is None
    assert found.own.failed is not None and set(found.own.failed) == {"timeout", "not asked any more"}
    assert len(server.asked) <= 3 * (GIVE_UP_AFTER + 4) and codes(found) == ["judge_not_usable"]


def test_a_busy_judge_is_asked_again(judge: Judge, server: Any) -> None:
    busy = iter([500, 429])
    found = judge(lambda a, b: next(busy, None) or prefers_longer(a, b), [["aa"]], [["bbb"]], concurrent=1)
    assert found.tables[0].tolist() == [[1.0]] and without_verdict(found) == 0 and len(server.asked) == 4


def test_a_refused_key_ends_the_comparison_and_says_where_the_key_is_read(judge: Judge) -> None:
    with pytest.raises(ModelError, match=r"judge at http://.*401.*OPENAI_API_KEY.*judge.jsonl"):
        judge(lambda a, b: 401, numbered(SHORT), numbered(LONG))


def test_a_judge_that_is_not_there_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueup.judging.endpoint.RETRIES_AFTER_S", ())
    nobody = Endpoint("http://127.0.0.1:9/v1", "m")
    found = endpoint_tables(nobody, [prompt(0)], candidates([["a"]]), candidates([["b"]]), tmp_path / "judge.jsonl")
    assert found.own.failed == {"no connection": 1} and codes(found) == ["judge_not_usable"]


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'localhost:8000/v1' is not an endpoint's address"):
        Endpoint("localhost:8000/v1", "m")


# ---- What is kept -----------------------------------------------------------------------------------------------


def test_an_interrupted_comparison_asks_only_what_is_left(judge: Judge, server: Any, tmp_path: Path) -> None:
    reference, aligned = numbered(SHORT), numbered(LONG)
    with pytest.raises(ModelError, match="403"):
        judge(lambda a, b: 403 if len(server.asked) > 20 else prefers_longer(a, b), reference, aligned)
    kept = len((tmp_path / "judge.jsonl").read_text(encoding="utf-8").splitlines())
    assert 20 >= kept > 0
    server.asked.clear()
    found = judge(prefers_longer, reference, aligned)
    assert len(server.asked) == 60 - kept and np.mean(found.tables) == 1
    server.asked.clear()
    again = judge(prefers_longer, reference, aligned)
    assert server.asked == [] and again.own == found.own


def test_what_failed_is_asked_again_and_what_was_refused_is_not(judge: Judge, server: Any) -> None:
    said: dict[str, Any] = {"aa": 500, "cc": "I must decline."}
    judge(lambda a, b: said.get(a) or said.get(b) or "[[A]]", [["aa"], ["cc"]], [["b"], ["d"]])
    server.asked.clear()
    found = judge(prefers_longer, [["aa"], ["cc"]], [["b"], ["d"]])
    assert len(server.asked) == 2 and found.tables[0] == 0 and found.own.refused == 1


def test_a_line_that_was_cut_short_is_asked_again(judge: Judge, server: Any, tmp_path: Path) -> None:
    judge(prefers_longer, [["aa"]], [["bbb"]])
    path = tmp_path / "judge.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    server.asked.clear()
    found = judge(prefers_longer, [["aa"]], [["bbb"]])
    assert len(server.asked) == 1 and found.tables[0] == 1
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_a_broken_file_of_replies_is_named(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "judge.jsonl").write_text('{"key": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"judge.jsonl:1: key"):
        judge(prefers_longer, [["aa"]], [["bbb"]])


def test_the_judge_reads_the_whole_conversation() -> None:
    turns = [Message(role="system", content="Be brief."), Message(role="user", content="And then?")]
    assert "system: Be brief.\n\nuser: And then?" in question(turns, "One.", "Two.")
