"""The comparison: its pure parts on hand-made answers, and the real stage on a tiny random model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
import yaml
from manifests import card_of

from rlhf.compare import answers, inputs, judges, run, verdict
from rlhf.compare import checkpoints as paths
from rlhf.compare.answers import ALIGNED, BEST, SFT, ComparedCompletions, Verdicts
from rlhf.compare.config import CompareConfig
from rlhf.compare.judges import JudgeResult, LabelOrigins, ScoringJudge
from rlhf.compare.schema import Checkpoint, PolicyMeasures
from rlhf.compare.verdict import Decision
from rlhf.config import CheckConfig
from trueup import cli, runs, stages
from trueup.artifacts.reports import Estimate, McNemar, PairedAccuracy
from trueup.config import EndpointParameters, SplitConfig
from trueup.data.duplicates.rows import QUESTIONS
from trueup.data.records import Candidate, CandidateSet, Message, prompt_id, read_jsonl, read_rows, write_rows
from trueup.data.rubric import rubric_version
from trueup.errors import DataError, RunError
from trueup.models import loading, sampling, tensors
from trueup.models.config import ModelConfig
from trueup.pages.wording import sentence
from trueup.statistics import intervals, length_control, win_rates
from trueup.verify import verify
from ui.labels.tables import view
from ui.labels.tasks import Judgement
from ui.labels.votes import Votes

CONFIG = CompareConfig(run_dir=Path("unused"), model=ModelConfig(), split=SplitConfig())


def said(text: str, finished: bool = True, logp: float = -1.0) -> Candidate:
    return Candidate(text=text, token_ids=[*text.encode(), *([0] if finished else [])], finished=finished, logp=logp)


def asked(i: int, candidates: list[Candidate]) -> CandidateSet:
    prompt = [Message(role="user", content=f"Question {i}?")]
    return CandidateSet(prompt_id=prompt_id(prompt), prompt=prompt, split="heldout", candidates=candidates, sampler={})


def judged(reference: Any, aligned: Any, name: str = "rubric", made_the_labels: bool = True) -> JudgeResult:
    """Scores (P, K) of both policies, with lengths that say nothing."""
    by = ScoringJudge(name, f"{name}, simulated", made_the_labels, not made_the_labels, lambda rows, said: [])
    scores = {SFT: np.asarray(reference, dtype=float).tolist(), ALIGNED: np.asarray(aligned, dtype=float).tolist()}
    tables = answers.outcome_tables(SFT, ALIGNED, scores[SFT], scores[ALIGNED])
    noise = np.random.default_rng(0).normal(0, 10, (len(tables), *tables[0].shape))
    categories = ["odd" if i % 2 else "even" for i in range(len(tables))]
    return judges.figures(by, scores, Verdicts(tables), list(noise), categories, CONFIG.confidence, CONFIG.seed)


def interval(value: float) -> intervals.Interval:
    return intervals.Interval(value, value, value, 60)


RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(0, 1, (60, 4))
BETTER = RNG.normal(1, 1, (60, 4))
ALIKE = RNG.normal(0, 1, (60, 4))
MEASURES = PolicyMeasures(
    length_tokens=30.0,
    eos_rate=0.9,
    distinct_2=0.8,
    repetition=0.1,
    self_similarity=None,
    heldout_loss=None,
    kl_nats=None,
)

# ---- Verdict ----------------------------------------------------------------------------------------------------


def verdict_of(
    judges: dict[str, JudgeResult],
    prompts: int = 60,
    identical: float = 0.0,
    prices: list[runs.Finding] = [],  # noqa: B006
    cards: dict[str, list[runs.Finding]] = {},  # noqa: B006
    floors: dict[str, intervals.Interval] = {},  # noqa: B006
    lengths: tuple[float, float] = (30.0, 30.0),
) -> Decision:
    standings = {name: verdict.standing(found, cards.get(name, ())) for name, found in judges.items()}
    return verdict.decide(judges, standings, floors, prompts, identical, lengths, prices)


def decide(made: JudgeResult, prompts: int, identical: float) -> runs.Finding:
    return verdict_of({made.by.name: made}, prompts, identical).finding


def of_rates(
    raw: tuple[float, float, float],
    controlled: tuple[float, float, float],
    name: str = "rubric",
    a_guess: bool = False,
    findings: list[runs.Finding] = [],  # noqa: B006
) -> JudgeResult:
    """A judge with these figures (value, low, high)."""
    by = ScoringJudge(name, f"{name}, planted", True, False, lambda rows, said: [])
    rate = win_rates.WinRate(intervals.Interval(*raw, 90), 50, 0, 40)
    at_equal_length = length_control.LengthControlled(intervals.Interval(*controlled, 90), 1.0, "a note", a_guess)
    return JudgeResult(by, {}, Verdicts([], findings=findings), rate, at_equal_length, 0.07, {})


def test_a_clear_win_is_a_preference_that_was_learnt() -> None:
    finding = decide(judged(REFERENCE, BETTER), 60, 0.0)
    assert (finding.level, finding.code) == ("info", "learnt_preference")
    assert finding.message.startswith("The aligned policy learnt this preference: it wins ")
    assert finding.message.endswith("of comparisons on 60 held-out prompts (judge: rubric, simulated).")


def test_a_clear_loss_fails() -> None:
    finding = decide(judged(BETTER, REFERENCE), 60, 0.0)
    assert (finding.level, finding.code) == ("fail", "moved_away")
    assert "moved away from this preference" in finding.message


def test_what_may_be_chance_is_no_detectable_change_and_says_what_it_could_have_seen() -> None:
    made = judged(REFERENCE, ALIKE)
    finding = decide(made, 60, 0.0)
    assert (finding.level, finding.code) == ("warn", "no_detectable_change")
    assert finding.message.startswith("No detectable change: ")
    assert f"could have detected {100 * made.minimum_detectable_effect:.1f} points." in finding.message


def test_an_unchanged_policy_wins_exactly_half_and_is_called_unchanged() -> None:
    finding = decide(judged(REFERENCE, REFERENCE), 60, 1.0)
    assert finding.code == "no_detectable_change"
    assert "50.0 % [47.8, 52.2]" in finding.message, "other prompts could differ: of 60 one or two"
    assert finding.message.endswith("both policies give the very same answers.")


def test_no_verdict_says_better_answers() -> None:
    for aligned in (BETTER, ALIKE, -BETTER):
        assert "better" not in decide(judged(REFERENCE, aligned), 60, 0.0).message


def test_a_single_prompt_decides_nothing() -> None:
    finding = decide(judged(REFERENCE[:1], REFERENCE[:1] + 9), 1, 0.0)
    assert finding.code == "no_detectable_change"
    assert "1 held-out prompt (" in finding.message


def test_a_judge_that_did_not_make_the_labels_is_not_said_to_speak_for_them() -> None:
    finding = decide(judged(REFERENCE, BETTER, made_the_labels=False), 60, 0.0)
    assert "learnt what this judge prefers" in finding.message
    stranger = {"rubric": judged(REFERENCE, BETTER, made_the_labels=False)}
    (doubt,) = doubts(stranger, labels=LabelOrigins({"human": 240}, None))
    assert doubt.code == "judge_is_not_the_labeller" and "240 human" in doubt.message


def test_swapping_the_policies_mirrors_every_judges_figures() -> None:
    one, other = judged(REFERENCE, BETTER), judged(BETTER, REFERENCE)
    assert one.win_rate.interval.value == pytest.approx(1 - other.win_rate.interval.value, abs=1e-12)
    assert one.minimum_detectable_effect == pytest.approx(other.minimum_detectable_effect)


# ---- Prices and doubts ------------------------------------------------------------------------------------------

CHECK = PairedAccuracy(
    sft=Estimate(value=0.6, ci_low=0.5, ci_high=0.7, n=50),
    aligned=Estimate(value=0.3, ci_low=0.2, ci_high=0.4, n=50),
    mcnemar=McNemar(p_value=0.001, both=15, only_sft=15, only_aligned=0, neither=20),
    unverified=0,
)


@pytest.mark.parametrize(
    ("changed", "kl", "checks", "code"),
    [
        ({"length_tokens": 46.0}, 1.0, {}, "longer"),
        ({"eos_rate": 0.79}, 1.0, {}, "stops_less"),
        ({"distinct_2": 0.63}, 1.0, {}, "less_varied"),
        ({}, 5.5, {}, "kl_over_budget"),
        ({}, 1.0, {"gsm8k": CHECK}, "regressed_gsm8k"),
    ],
)
def test_every_price_of_a_win_is_named_and_makes_it_a_win_at_a_price(
    changed: dict[str, float], kl: float, checks: dict[str, Any], code: str
) -> None:
    prices = verdict.find_prices(MEASURES, MEASURES.model_copy(update=changed), interval(kl), 5.0, checks)
    assert [price.code for price in prices] == [code]
    decided = verdict_of({"rubric": judged(REFERENCE, BETTER)}, prices=prices)
    assert (decided.outcome, decided.finding.level) == ("improved_at_a_price", "warn")
    assert prices[0].message in decided.finding.message
    assert decided.report("warn").prices == [prices[0].message]


def test_small_changes_and_what_may_be_chance_are_no_price() -> None:
    after = MEASURES.model_copy(update={"length_tokens": 44.0, "eos_rate": 0.81, "distinct_2": 0.65, "repetition": 0.5})
    by_chance = {"gsm8k": CHECK.model_copy(update={"mcnemar": CHECK.mcnemar.model_copy(update={"p_value": 0.2})})}
    assert verdict.find_prices(MEASURES, after, interval(99.0), None, by_chance) == []
    assert verdict_of({"rubric": judged(REFERENCE, BETTER)}).outcome == "improved"


def test_what_was_not_won_has_no_price() -> None:
    prices = verdict.find_prices(MEASURES, MEASURES.model_copy(update={"length_tokens": 46.0}), interval(1.0), None, {})
    lost = verdict_of({"rubric": judged(BETTER, REFERENCE)}, prices=prices)
    assert (lost.prices, lost.outcome) == ([], "worse")
    assert verdict_of({"rubric": judged(REFERENCE, ALIKE)}, prices=prices).outcome == "no_detectable_change"


Rate = tuple[float, float, float]
"""A win rate and its interval."""
WON = (0.6, 0.55, 0.65)


@pytest.mark.parametrize(
    ("raw", "controlled", "lengths", "outcome", "price"),
    [
        # A judge that likes nothing but length, and a reward model that mostly does: the examples of real runs.
        ((0.806, 0.77, 0.84), (0.531, 0.495, 0.561), (30, 45), "improved_at_a_price", "longer"),
        ((0.604, 0.556, 0.650), (0.547, 0.494, 0.597), (28, 31), "improved_at_a_price", "longer"),
        ((0.604, 0.556, 0.650), (0.547, 0.494, 0.597), (28, 20), "improved_at_a_price", "shorter"),
        ((0.692, 0.652, 0.731), (0.678, 0.642, 0.717), (28, 31), "improved", None),
        (WON, (0.43, 0.38, 0.48), (28, 31), "improved_at_a_price", "longer"),
        (WON, (0.5, 0.5, 0.5), (28, 28), "improved_at_a_price", "longer"),
        (WON, (0.51, 0.50001, 0.52), (28, 31), "improved", None),
        ((0.53, 0.49, 0.57), (0.6, 0.55, 0.65), (28, 20), "no_detectable_change", None),
        ((0.4, 0.35, 0.45), (0.55, 0.51, 0.6), (28, 20), "worse", None),
    ],
)
def test_a_win_must_be_one_at_equal_length_too_or_length_is_its_price(
    raw: Rate, controlled: Rate, lengths: tuple[float, float], outcome: str, price: str | None
) -> None:
    decided = verdict_of({"rubric": of_rates(raw, controlled)}, lengths=lengths)
    assert decided.outcome == outcome
    assert [found.code for found in decided.prices] == ([price] if price else [])
    if price:
        assert "at equal length it wins" in decided.finding.message
        assert verdict.percent(intervals.Interval(*controlled, 90)) in decided.finding.message


def test_where_equal_length_is_a_guess_a_win_is_not_shown_there() -> None:
    decided = verdict_of({"rubric": of_rates(WON, WON, a_guess=True)}, lengths=(20, 40))
    assert [price.code for price in decided.prices] == ["longer"]
    assert "at equal length nothing is known: a note" in decided.finding.message


def test_answers_of_much_greater_length_and_a_win_that_is_not_shown_at_equal_length_are_one_price() -> None:
    prices = verdict.find_prices(MEASURES, MEASURES.model_copy(update={"length_tokens": 60.0}), interval(1.0), None, {})
    decided = verdict_of({"rubric": of_rates(WON, (0.5, 0.45, 0.55))}, prices=prices, lengths=(30, 60))
    (price,) = decided.prices
    assert price.code == "longer" and "2.00 times as long" in price.message and "at equal length" in price.message


WARNS = [runs.Finding("warn", "not_told_from_a_rule", "accuracy 70 %; a rule gets 71 %")]
FAILS = [runs.Finding("fail", "no_better_than_chance", "accuracy 52 % does not exclude 50 %")]
UNUSABLE = [runs.Finding("warn", "judge_not_usable", "it gave no verdict on 9 of 10 comparisons")]
NAN = (float("nan"), 0.0, 1.0)


def test_a_judge_whose_report_card_warns_decides_and_is_named() -> None:
    judges = {"reward_model": of_rates(WON, WON, "reward_model")}
    decided = verdict_of(judges, cards={"reward_model": WARNS})
    assert (decided.outcome, decided.judge) == ("improved", "reward_model")
    assert "Of this judge: accuracy 70 %; a rule gets 71 %." in decided.finding.message
    found = doubts(judges, cards={"reward_model": WARNS}, decided=decided)
    assert [(doubt.level, doubt.code) for doubt in found] == [("warn", "judge_not_told_from_a_rule")]
    priced = verdict_of(judges, cards={"reward_model": WARNS}, prices=[runs.Finding("warn", "x", "dear")])
    assert priced.finding.message.endswith(" The price: dear."), "pages list prices apart"
    assert sentence(priced.report("warn")).endswith("a rule gets 71 %.")


@pytest.mark.parametrize("why", ["card", "unusable", "nothing compared"])
def test_a_judge_that_failed_decides_nothing_and_the_next_one_does(why: str) -> None:
    first = of_rates(WON, WON, "reward_model", findings=UNUSABLE if why == "unusable" else [])
    if why == "nothing compared":
        first = judged(np.full((1, 2), np.nan), np.full((1, 2), np.nan), "reward_model")
    cards = {"reward_model": FAILS} if why == "card" else {}
    both = {"reward_model": first, "rubric": of_rates((0.4, 0.35, 0.45), (0.4, 0.3, 0.5))}
    decided = verdict_of(both, cards=cards)
    assert (decided.outcome, decided.judge) == ("worse", "rubric")
    assert "The judge reward model decides nothing: " in decided.finding.message
    assert list(decided.report("fail").passed_over) == ["reward_model"]

    alone = verdict_of({"reward_model": first}, cards=cards)
    assert (alone.outcome, alone.judge, alone.finding.code) == ("no_verdict", None, "no_verdict")
    assert all(alone.outcome not in passing for passing in cli.GATES.values())


def test_what_the_sft_policy_wins_against_itself_is_no_win() -> None:
    judges = {"rubric": of_rates((0.58, 0.54, 0.62), (0.58, 0.54, 0.62))}
    sound, odd = intervals.Interval(0.52, 0.47, 0.57, 90), intervals.Interval(0.54, 0.51, 0.57, 90)
    assert verdict_of(judges, floors={"rubric": sound}).outcome == "improved"
    decided = verdict_of(judges, floors={"rubric": odd})
    assert (
        decided.outcome == "no_detectable_change"
        and "wins 54.0 % [51.0, 57.0] against itself" in decided.finding.message
    )
    assert [doubt.code for doubt in doubts(judges, floors={"rubric": odd}, decided=decided)] == ["noise_floor"]
    clear = {"rubric": of_rates((0.7, 0.66, 0.74), (0.7, 0.66, 0.74))}
    assert verdict_of(clear, floors={"rubric": odd}).outcome == "improved", "far beyond it"
    assert verdict_of({"rubric": of_rates((0.4, 0.38, 0.44), WON)}, floors={"rubric": odd}).outcome == "worse"


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (0.9, 1.0, 4.9, None),
        (3.0, 4.0, 5.5, "may be over"),
        (4.0, 5.5, 7.0, "is likely over"),
        (5.1, 6.0, 7.0, "is over"),
    ],
)
def test_kl_is_within_its_budget_only_if_its_interval_is(
    low: float, value: float, high: float, said: str | None
) -> None:
    prices = verdict.find_prices(MEASURES, MEASURES, intervals.Interval(value, low, high, 60), 5.0, {})
    assert [price.code for price in prices] == (["kl_over_budget"] if said else [])
    assert said is None or f"it {said} the budget of 5" in prices[0].message
    unknown = intervals.Interval(1.0, 0.0, float("inf"), 1)
    assert verdict.find_prices(MEASURES, MEASURES, unknown, 5.0, {}), "of one prompt nothing is known"


def doubts(
    judges: dict[str, JudgeResult],
    after: dict[str, float] = {},  # noqa: B006
    prompts: int = 60,
    labels: LabelOrigins = LabelOrigins({}, None),  # noqa: B008
    cards: dict[str, list[runs.Finding]] = {},  # noqa: B006
    floors: dict[str, intervals.Interval] = {},  # noqa: B006
    decided: Decision | None = None,
) -> list[runs.Finding]:
    decided = decided or verdict_of(judges, prompts)
    changed = MEASURES.model_copy(update=after)
    return verdict.reasons_for_doubt(decided, judges, cards, floors, MEASURES, changed, prompts, labels)


def test_shorter_answers_are_a_reason_to_look_at_equal_length() -> None:
    (doubt,) = doubts({"rubric": judged(REFERENCE, BETTER)}, {"length_tokens": 19.0})
    assert doubt.code == "shorter"


def test_judges_that_disagree_are_both_quoted() -> None:
    both = {
        "rubric": judged(REFERENCE, BETTER),
        "reward_model": judged(BETTER, REFERENCE, "reward_model"),
    }
    (doubt,) = doubts(both)
    assert doubt.code == "judges_disagree"
    for made in both.values():
        assert verdict.percent(made.win_rate.interval) in doubt.message


def test_judges_on_two_sides_of_half_by_chance_do_not_disagree() -> None:
    both = {"rubric": judged(REFERENCE, ALIKE), "reward_model": judged(ALIKE, REFERENCE, "reward_model")}
    assert doubts(both) == []


def test_few_prompts_are_called_few() -> None:
    assert [doubt.code for doubt in doubts({"rubric": judged(REFERENCE, BETTER)}, prompts=19)] == ["few_prompts"]


# ---- Measures ---------------------------------------------------------------------------------------------------


def test_answers_are_described_as_counted_by_hand() -> None:
    made = answers.describe([[said("a b a b a b")], [said("c d", finished=False)]])
    assert made["length_tokens"] == (11 + 1 + 3) / 2
    assert made["eos_rate"] == 0.5
    assert made["distinct_2"] == 3 / 6  # ab, ba, cd of ab ba ab ba ab cd
    assert made["repetition"] == 0.5


def test_empty_answers_can_be_described() -> None:
    assert answers.describe([[said("", finished=False)]]) == {
        "length_tokens": 0,
        "eos_rate": 0,
        "distinct_2": 0,
        "repetition": 0,
    }


def test_identical_answers_are_counted_by_their_tokens() -> None:
    row = asked(0, [said("a"), said("b")])
    compared = ComparedCompletions([row], {SFT: [row.candidates], ALIGNED: [[said("a"), said("b", finished=False)]]})
    assert compared.share_identical() == 0.5


def test_length_differences_lie_as_outcomes_do() -> None:
    (difference,) = answers.length_differences([[said("a"), said("abc")]], [[said("abc"), said("abcdefg")]])
    assert (difference[0, 1], difference[1, 0]) == (8 - 2, 4 - 4)


def test_a_judge_sees_every_policy_and_compares_answers_that_were_drawn_apart() -> None:
    rows = [asked(i, [said("x"), said("xx")]) for i in range(2)]
    aligned = [[said("xxx"), said("xxxx")] for _ in rows]
    by = ScoringJudge("length", "length", True, False, lambda rows, all: [[len(c.text) for c in row] for row in all])
    made = judges.judge(
        by, ComparedCompletions(rows, {SFT: [row.candidates for row in rows], ALIGNED: aligned}), CONFIG
    )
    assert made.scores == {SFT: [[1, 2], [1, 2]], ALIGNED: [[3, 4], [3, 4]]}
    assert made.win_rate.wins == 4
    assert made.win_rate.interval.low == pytest.approx(intervals.wilson(2, 2).low)


@pytest.mark.parametrize(("unread", "code"), [(1, "judge_without_verdict"), (3, "judge_not_usable")])
def test_a_prompt_with_an_answer_that_a_judge_cannot_read_is_compared_for_no_policy_and_is_counted(
    unread: int, code: str
) -> None:
    rows = [asked(i, [said("x"), said("xx"), said("xxx")]) for i in range(6)]
    aligned = [[said("unreadable" if i < unread else "xxxx"), said("xxxxx"), said("xxxxxx")] for i in range(6)]
    by = ScoringJudge(
        *("length", "length", True, False),
        lambda rows, all: [[math.nan if c.text == "unreadable" else len(c.text) for c in row] for row in all],
    )
    compared = ComparedCompletions(rows, {SFT: [row.candidates for row in rows], ALIGNED: aligned, "other": aligned})
    made = judges.judge(by, compared, CONFIG)
    assert made.win_rate.interval.n == 6 - unread and made.win_rate.wins == 6 * (6 - unread)
    assert [made.win_share(i) is None for i in range(6)] == [i < unread for i in range(6)]
    (finding,) = made.verdicts.findings
    assert finding.code == code and f"on {unread} of 6 prompts" in finding.message
    assert run.sample_row(compared, {"length": made}, 0).sft[1].scores == {}, "not one that others lack"
    best = answers.best_of_others(aligned[:1], by.score(rows[:1], aligned[:1]))
    assert "unreadable" not in {one.text for one in best[0]}


def test_categories_are_counted_apart() -> None:
    made = judged(REFERENCE, BETTER)
    assert list(made.by_category) == ["even", "odd"]
    assert sum(rate.wins for rate in made.by_category.values()) == made.win_rate.wins


def test_best_of_n_never_holds_the_answer_that_it_is_compared_with() -> None:
    row = [said(text) for text in ("low", "best", "good")]
    (best,) = answers.best_of_others([row], [[1.0, 3.0, 2.0]])
    assert [candidate.text for candidate in best] == ["best", "good", "best"]
    (table,) = answers.outcome_tables(SFT, BEST, [[1.0, 3.0, 2.0]], [[3.0, 2.0, 3.0]])
    assert np.diag(table).tolist() == [1.0, 0.0, 1.0] and np.isnan(table).sum() == 6


def test_best_of_n_wins_more_than_half_by_its_own_judge_and_half_by_a_coin() -> None:
    rng = np.random.default_rng(3)
    scores, coin = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    row = [[said(str(k)) for k in range(4)]] * 400
    picked = [[int(c.text) for c in best] for best in answers.best_of_others(row, scores.tolist())]
    by_scores = answers.outcome_tables(
        SFT, BEST, scores.tolist(), np.take_along_axis(scores, np.array(picked), 1).tolist()
    )
    by_coin = answers.outcome_tables(SFT, BEST, coin.tolist(), np.take_along_axis(coin, np.array(picked), 1).tolist())
    assert np.nanmean(by_scores) == pytest.approx(3 / 4, abs=0.03), "the best of 3 and one more: the best of 4"
    assert np.nanmean(by_coin) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_kl_of_best_of_n_is_never_under_its_bound_and_near_it_where_no_answer_comes_twice(n: int) -> None:
    def exact(answers: int) -> float:
        """Answers in a strict order are as likely: the i-th is chosen if all n are among the first i, not i - 1."""
        chosen = np.diff((np.arange(answers + 1) / answers) ** n)
        return float((chosen * np.log(chosen * answers)).sum())

    bound = answers.kl_of_best(n)
    assert exact(2) < 0.9 * bound
    assert exact(100_000) < bound == pytest.approx(exact(100_000), rel=1e-3)


def test_kl_by_sampling_agrees_with_the_exact_kl_of_a_tiny_vocabulary() -> None:
    rng = np.random.default_rng(0)
    logits, shift = rng.normal(size=(2, 6))
    log_p, log_q = (x - np.log(np.exp(x).sum()) for x in (logits + shift, logits))
    p = np.exp(log_p)
    exact = 3 * float((p * (log_p - log_q)).sum())  # three tokens, each drawn alike
    drawn = rng.choice(6, size=(2000, 3), p=p)
    ratios = (log_p[drawn] - log_q[drawn]).sum(1)
    assert ratios.mean() == pytest.approx(exact, rel=0.1) and ratios.min() < 0
    by_logits = float(tensors.kl(torch.tensor(log_p), torch.tensor(log_q)))
    assert by_logits == pytest.approx(exact / 3, rel=1e-5)
    found = answers.kl_per_sequence([[by_logits] * 3] * 20, 0.95, 0)
    assert found.value == found.low == found.high == pytest.approx(exact, rel=1e-5), "alike everywhere: no variance"
    assert answers.kl_per_token([[by_logits] * 3] * 20, 0.95, 0).value == pytest.approx(exact / 3, rel=1e-5)


def test_a_budget_chooses_the_best_step_within_it() -> None:
    def mean(value: float) -> Estimate:
        return Estimate(value=value, ci_low=None, ci_high=None, n=24)

    path = [
        Checkpoint(step=step, kl_nats=mean(kl), scores={"reward_model": mean(score)})
        for step, kl, score in ((0, 0.0, 0.0), (10, 1.0, 0.6), (20, 2.0, 0.9), (30, 4.0, 1.2))
    ]
    chosen = paths.within_budget(path, "reward_model", 2.5)
    assert chosen is not None and chosen.step == 20
    assert paths.within_budget(path, "nobody", 2.5) is None


def test_report_figures_are_json_even_where_nothing_is_known() -> None:
    json.dumps(judged(REFERENCE[:1], BETTER[:1]).report().plain(), allow_nan=False)


# ---- The stage --------------------------------------------------------------------------------------------------

STAGE_FILES = {"config.yaml", "manifest.json", "report.html", "report.json", "samples.jsonl"}


HELDOUT = {"heldout_fraction": 0.5}
_sampled: list[Path] = []


@pytest.fixture
def run_dir(campaign: Callable[..., Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run up to sampling, made once, whose aligned policy is the SFT policy: a planted no-op."""
    if not _sampled:
        made = campaign(tmp_path_factory.mktemp("sampled"), split=HELDOUT)
        for stage in ("sft", "sample"):
            stages.load_object(made.stages[stage].run)(made.stages[stage])
        _sampled.append(made.run_dir)
    run_dir = shutil.copytree(_sampled[0], tmp_path / "run")
    align = shutil.copytree(run_dir / "sft", run_dir / "align")
    manifest = json.loads((align / "manifest.json").read_text())
    (align / "manifest.json").write_text(json.dumps({**manifest, "stage": "align", "identity": {"algorithm": "dpo"}}))
    return run_dir


@pytest.fixture
def config(run_dir: Path, tiny_base: Path) -> CompareConfig:
    return CompareConfig(
        run_dir=run_dir,
        model=ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu"),
        split=SplitConfig(**HELDOUT),
        judges=["rubric"],
        rubric="says-why",
        batch_size=4,
    )


def test_an_unchanged_policy_answers_alike_and_no_change_is_detected(config: CompareConfig) -> None:
    directory = run.run(config)

    assert {path.name for path in directory.iterdir()} == STAGE_FILES
    report = json.loads((directory / "report.json").read_text())
    assert report["identical_completions"] == 1
    assert report["verdict"]["code"] == "no_detectable_change"
    rate = report["judges"]["rubric"]["win_rate"]
    assert rate["value"] == 0.5 and rate["ci_low"] < 0.5 < rate["ci_high"], "ties are no certainty"
    assert 0.5 - rate["ci_low"] == pytest.approx(1.386 / (report["prompts"] + 2), abs=1e-3)
    assert rate["n"] == rate["wins"] + rate["ties"] + rate["losses"] == report["prompts"] * 3 * 2
    assert report["kl_nats"]["value"] == 0 == report["kl_nats_per_token"]["value"]
    before, after = (report["policies_compared"]["measures"][name] for name in ("sft", "aligned"))
    for key in ("length_tokens", "eos_rate", "distinct_2", "repetition"):
        assert before[key] == after[key]
    assert before["heldout_loss"] == pytest.approx(after["heldout_loss"])
    assert report["greedy"]["rubric"]["value"] == 0.5
    assert report["checkpoints"] == [], "a planted policy has no way behind it"
    floor = report["noise_floor"]["rubric"]
    assert floor["ci_low"] <= 0.5 <= floor["ci_high"]

    manifest = json.loads((directory / "manifest.json").read_text())
    assert [parent["stage"] for parent in manifest["parents"]] == ["sft", "sample", "align"]
    assert manifest["verdict"]["findings"][0]["code"] == "no_detectable_change"
    assert {output["path"] for output in manifest["outputs"]} == STAGE_FILES - {"manifest.json"}
    assert manifest["device"] == "cpu"

    rows = [row for _, row in read_jsonl(directory / "samples.jsonl")]
    assert len(rows) == report["prompts"] > 1
    assert len(rows[0]["sft"]) == len(rows[0]["aligned"]) == 3
    assert set(rows[0]["aligned"][0]) == {"text", "finished", "num_tokens", "logp", "scores"}


def test_a_changed_policy_differs_is_scored_by_the_reward_model_and_has_moved(config: CompareConfig) -> None:
    plant_models(config)
    directory = run.run(config.model_copy(update={"judges": ["reward_model", "rubric"]}))

    report = json.loads((directory / "report.json").read_text())
    assert list(report["judges"]) == ["reward_model", "rubric"]
    assert report["identical_completions"] < 1
    kl = report["kl_nats"]
    assert 0 < kl["ci_low"] < kl["value"] < kl["ci_high"], "never below 0, of however few answers"
    assert report["verdict"]["judge"] == "reward_model"
    assert "Of this judge" not in report["verdict"]["message"], "its report card found nothing"
    assert "learnt from the same labels" in report["verdict"]["message"]
    manifest = json.loads((directory / "manifest.json").read_text())
    assert [parent["stage"] for parent in manifest["parents"]] == ["sft", "sample", "align", "reward"]


def test_a_judge_of_which_no_report_card_tells_is_doubted_and_may_decide(config: CompareConfig) -> None:
    plant_models(config)
    cards = inputs.read_report_cards(config.run_dir, ["reward_model", "second_reward_model"])
    assert cards["reward_model"] == []
    assert [finding.code for finding in cards["second_reward_model"]] == ["no_report_card"]
    decided = verdict_of({"second_reward_model": of_rates(WON, WON, "second_reward_model")}, cards=cards)
    assert decided.judge == "second_reward_model"
    assert "Of this judge: it has no report card, so nothing is known of its accuracy." in decided.finding.message


def test_a_reward_model_whose_report_card_failed_decides_nothing_in_a_real_comparison(config: CompareConfig) -> None:
    plant_models(config)
    failed = {"level": "fail", "code": "no_better_than_chance", "message": "accuracy 52 % does not exclude 50 %"}
    warned = {"level": "warn", "code": "not_told_from_a_rule", "message": "accuracy 70 %; a rule gets 71 %"}
    card = card_of(findings=[warned], judge=card_of(findings=[failed]))
    (config.run_dir / "reward" / "report.json").write_text(json.dumps(card))
    shutil.copytree(config.run_dir / "reward" / "model", config.run_dir / "reward" / "judge" / "model")

    def verdict_by(*names: str) -> dict[str, Any]:
        directory = run.run(config.model_copy(update={"judges": list(names), "greedy": False, "step_prompts": 0}))
        return json.loads((directory / "report.json").read_text())["verdict"]

    by_next = verdict_by("second_reward_model", "reward_model")
    assert by_next["judge"] == "reward_model" and list(by_next["passed_over"]) == ["second_reward_model"]
    assert "second reward model decides nothing: accuracy 52 %" in by_next["message"]
    assert "Of this judge: accuracy 70 %; a rule gets 71 %." in by_next["message"]
    alone = verdict_by("second_reward_model")
    assert (alone["outcome"], alone["judge"]) == ("no_verdict", None)


def plant_models(config: CompareConfig) -> None:
    """Another aligned policy, and a reward model with a fresh head."""
    policy = loading.load_policy(config.run_dir / "align" / "model", config.model)
    torch.manual_seed(1)
    for weight in policy.model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    loading.save(policy, config.run_dir / "align" / "model")
    reward = loading.load_reward_model(config.run_dir / "sft" / "model", config.model, fresh_head=True)
    loading.save(reward, config.run_dir / "reward" / "model")
    manifest = json.loads((config.run_dir / "align" / "manifest.json").read_text())
    (config.run_dir / "reward" / "manifest.json").write_text(json.dumps({**manifest, "stage": "reward"}))
    (config.run_dir / "reward" / "report.json").write_text(json.dumps(card_of()))
    (config.run_dir / "reward" / runs.TRAINED).write_text("[]")
    (config.run_dir / "reward" / QUESTIONS).write_text("")
    (config.run_dir / "reward" / runs.CONFIG).write_text("reward: {}\n")


@pytest.mark.parametrize(
    ("learning_rate", "paid", "labelled", "independent"),
    [(1e-4, False, False, False), (0, False, False, True), (0.0, True, False, False), (0, False, True, False)],
)
def test_a_reward_model_is_an_independent_judge_if_it_came_trained_and_neither_labelled_nor_paid(
    config: CompareConfig, learning_rate: float, paid: bool, labelled: bool, independent: bool
) -> None:
    plant_models(config)
    for stage, facts in (
        ("reward", {"identity": {"learning_rate": learning_rate}}),
        ("align", {"parents": [{"stage": "reward", "manifest_sha256": "00"}] if paid else []}),
    ):
        path = config.run_dir / stage / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    by = judges.reward_model_judge(config, LabelOrigins({"reward_model" if labelled else "human": 5}, None))
    assert (by.independent, by.made_the_labels) == (independent, not independent)
    assert ("not trained here" in by.description) is (learning_rate == 0)


def test_answers_that_are_the_same_tie_by_the_reward_model_whatever_batch_they_were_in(config: CompareConfig) -> None:
    plant_models(config)
    by = judges.reward_model_judge(config, LabelOrigins({}, None))
    rows = list(read_rows(candidates(config), CandidateSet))
    assert isinstance(by, ScoringJudge)
    scores = by.score(rows, [[*row.candidates, *row.candidates] for row in rows])
    assert all(row[:3] == row[3:] for row in scores)
    assert len({score for row in scores for score in row}) > 1


def test_a_whole_run_shows_every_policy_and_the_way_of_the_alignment(
    campaign: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"base": True, "others": {"again": str(tmp_path / "other")}, "kl_budget": 1e9, "step_prompts": 3}
    made = campaign(
        tmp_path, split=HELDOUT, align={"max_steps": 6, "keep_steps": 2}, reward={"max_steps": 2}, compare=keys
    )
    for stage in ("sft", "sample", "label", "reward", "align"):
        stages.load_object(made.stages[stage].run)(made.stages[stage])
    shutil.copytree(made.run_dir, tmp_path / "other")
    directory = run.run(made.stages["compare"])

    report = json.loads((directory / "report.json").read_text())
    every = report["policies_compared"]
    assert every["policies"] == ["base", "sft", "aligned", "again", "best_of_n"] and every["best_of"] == 2
    assert len(every["pairs"]) == 10 * len(report["judges"])
    again = next(p for p in every["pairs"] if (p["a"], p["b"]) == ("aligned", "again"))
    assert again["win_rate"]["value"] == pytest.approx(0.5), "the same policy under another name"
    picked = next(p for p in every["pairs"] if (p["a"], p["b"], p["judge"]) == ("sft", "best_of_n", "reward_model"))
    assert picked["win_rate"]["value"] > 0.5

    measures = every["measures"]
    assert list(measures) == every["policies"]
    for key, value in measures["aligned"].items():
        assert measures["again"][key] == pytest.approx(value), "the same policy under another name"
    assert measures["sft"]["kl_nats"] is None and measures["base"]["kl_nats"]["value"] > 0
    assert measures["base"]["heldout_loss"] > measures["sft"]["heldout_loss"], "the base model was not taught this"
    assert measures["best_of_n"]["kl_nats"]["value"] == pytest.approx(np.log(2) - 1 / 2)

    assert [at["step"] for at in report["checkpoints"]] == [0, 2, 4, 6]
    assert report["checkpoints"][0]["kl_nats"]["value"] == pytest.approx(0, abs=1e-4)
    assert report["chosen_by_budget"] in report["checkpoints"]
    assert {path.name for path in directory.iterdir()} == STAGE_FILES
    row = next(read_jsonl(directory / "samples.jsonl"))[1]
    assert set(row["others"]) == {"base", "again", "best_of_n"}
    assert verify(made.run_dir).problems == []

    # A gate reads the verdict of a finished comparison, and turns it into an exit code.
    outcome = report["verdict"]["outcome"]
    for gate, passing in cli.GATES.items():
        code = cli.main(["compare", str(made.source), "--gate", gate])
        assert code == (0 if outcome in passing else 4)
        assert f"the verdict is {outcome}" in capsys.readouterr().err
    assert cli.main(["run", str(made.source), "--until", "sft", "--gate"]) == 2
    assert "which --until sft does not reach" in capsys.readouterr().err


def test_a_judge_that_likes_nothing_but_length_passes_no_gate(
    campaign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = campaign(
        tmp_path,
        split=HELDOUT,
        sft={"max_steps": 1},
        sample={"num_candidates": 2, "max_new_tokens": 12},
        compare={"judges": ["rubric"], "greedy": False, "step_prompts": 0},
    )
    write_rows(tmp_path / "prompts.jsonl", ({"prompt": f"Tell me about {i} things."} for i in range(90)))
    for stage in ("sft", "sample"):
        stages.load_object(made.stages[stage].run)(made.stages[stage])

    # Planted: the SFT policy's answers are cut at random, the aligned policy (the same model) says the whole of them.
    rng = np.random.default_rng(0)
    rows = list(read_rows(made.run_dir / "candidates" / "candidates.jsonl", CandidateSet))
    for row in rows:
        for candidate in row.candidates:
            candidate.token_ids[:] = candidate.token_ids[: rng.integers(1, len(candidate.token_ids) + 1)]
    sampled = runs.begin(made.stages["sample"])
    write_rows(sampled.dir / "candidates.jsonl", rows)
    sampled.finish()
    (made.run_dir / "labels").mkdir()
    manifest = json.loads((made.run_dir / "sft" / "manifest.json").read_text())
    (made.run_dir / "labels" / "manifest.json").write_text(json.dumps({**manifest, "stage": "label"}))
    (made.run_dir / "labels" / "report.json").write_text(json.dumps({"by_source": {"human": 12}, "by_round": {1: 12}}))
    aligned = runs.begin(made.stages["align"])
    shutil.copytree(made.run_dir / "sft" / "model", aligned.dir / "model")
    aligned.trained_on([])
    aligned.finish()
    by = ScoringJudge("rubric", "length", True, False, lambda rows, all: [[len(c.token_ids) for c in r] for r in all])
    monkeypatch.setitem(judges.JUDGES, "rubric", lambda config, labels: by)
    report = json.loads((run.run(made.stages["compare"]) / "report.json").read_text())

    found = report["judges"]["rubric"]
    assert found["win_rate"]["ci_low"] > 0.7 and found["length_controlled_win_rate"]["ci_low"] < 0.5
    assert report["noise_floor"]["rubric"]["ci_low"] < 0.5 < report["noise_floor"]["rubric"]["ci_high"]
    assert report["verdict"]["outcome"] == "improved_at_a_price" and report["verdict"]["judge"] == "rubric"
    assert any("at equal length" in price for price in report["verdict"]["prices"])
    assert report["kl_nats"]["value"] == 0, "the same model"
    for gate, code in (("improved", 4), ("price", 0), ("not-worse", 0)):
        assert cli.main(["compare", str(made.source), "--gate", gate]) == code
    assert "not passed, the verdict is improved_at_a_price" in capsys.readouterr().err


def test_a_judge_that_always_prefers_the_first_answer_decides_nothing_and_is_shown_for_what_it_is(
    config: CompareConfig, server: Any
) -> None:
    plant_models(config)
    server.say = lambda a, b: "[[A]]"
    url = f"http://127.0.0.1:{server.server_port}/v1"
    keys = {
        "judge_parameters": EndpointParameters(temperature=None, max_tokens=9),
        "judge_url": url,
        "judge_model": "m",
    }
    directory = run.run(config.model_copy(update={"judges": ["endpoint"], **keys}))
    assert {(body.get("temperature"), body["max_tokens"]) for body in server.asked} == {(None, 9)}
    report = json.loads((directory / "report.json").read_text())
    found = report["judges"]["endpoint"]
    assert found["win_rate"]["value"] == 0.5 and found["independent"]
    assert found["position_bias"]["value"] == 1.0
    assert report["verdict"]["outcome"] == "no_detectable_change"
    codes = {
        finding["code"] for finding in json.loads((directory / "manifest.json").read_text())["verdict"]["findings"]
    }
    assert {"judge_position_bias", "judge_is_not_the_labeller"} <= codes


def test_a_judge_that_never_answers_to_the_point_gives_no_verdict(config: CompareConfig, server: Any) -> None:
    plant_models(config)
    server.say = lambda a, b: "They are both lovely."
    url = f"http://127.0.0.1:{server.server_port}/v1"
    directory = run.run(config.model_copy(update={"judges": ["endpoint"], "judge_url": url, "judge_model": "m"}))
    report = json.loads((directory / "report.json").read_text())
    assert report["judges"]["endpoint"]["malformed"] == report["judges"]["endpoint"]["comparisons"] > 0
    assert (report["verdict"]["code"], report["verdict"]["outcome"]) == ("no_verdict", "no_verdict")
    assert report["verdict"]["judge"] is None and "is not usable here" in report["verdict"]["message"]
    assert "No verdict" in (directory / "report.html").read_text(encoding="utf-8")


def test_peoples_votes_are_a_judge_until_the_answers_are_others(config: CompareConfig) -> None:
    plant_models(config)
    directory = run.run(config)
    votes = Votes(config.run_dir)
    service = votes.service()
    while tasks := service.tasks("ann"):
        with service.store.read() as db:
            drawn = db.execute(sa.select(view.c.drawn).where(view.c.token == tasks[0].token)).scalar_one()
        side = "ab"[drawn.index(1)]  # the aligned policy's answer is an item's second
        service.label("ann", Judgement(client_uuid=f"press-{tasks[0].token[:8]}", token=tasks[0].token, choice=side))
    votes.close()

    judging = config.model_copy(update={"judges": ["votes", "rubric"]})
    assert judging.fingerprint()["votes"] is not None
    found = json.loads((run.run(judging) / "report.json").read_text())
    by_people = found["judges"]["votes"]
    assert by_people["win_rate"]["value"] == 1.0 and by_people["votes"] == by_people["win_rate"]["n"] > 1
    assert by_people["independent"] and by_people["voters"] == 1
    assert "people's blind votes" in found["verdict"]["message"]

    rows = [row for _, row in read_jsonl(directory / "samples.jsonl")]
    sft = loading.load_policy(config.run_dir / "sft" / "model", config.model)
    loading.save(sft, config.run_dir / "align" / "model")
    found = json.loads((run.run(judging) / "report.json").read_text())
    assert found["judges"]["votes"]["votes_on_other_completions"] > 0 and len(rows) == found["prompts"]


def test_checks_are_answered_by_both_policies_and_leave_out_what_was_trained_on(
    config: CompareConfig, tmp_path: Path
) -> None:
    path = tmp_path / "gsm8k.jsonl"
    write_rows(path, ({"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(5)))
    trained = prompt_id([Message(role="user", content="What is 3 + 1?")])
    (config.run_dir / "sft" / runs.TRAINED).write_text(json.dumps([trained]))
    checks = [CheckConfig(kind="gsm8k", path=path, max_new_tokens=4)]
    directory = run.run(config.model_copy(update={"checks": checks}))
    found = json.loads((directory / "report.json").read_text())["checks"]["gsm8k"]
    assert found["sft"] == found["aligned"] and found["sft"]["n"] == 4
    assert (found["left_out"], found["mcnemar"]["p_value"]) == (1, 1.0)


def test_the_campaign_of_the_documentation_loads(campaign: Callable[..., Any], tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "comparing.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(part.partition("```")[0]) for part in text.split("```yaml\n")[1:]]
    [sections] = [block for block in blocks if "compare" in block]
    made = campaign(tmp_path, **sections).stages["compare"]
    assert made.others and [check.kind for check in made.checks] == ["ifeval", "gsm8k"]


def test_what_an_interrupted_run_had_sampled_is_not_sampled_again(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[int] = []
    real = sampling.sample_saved

    def until_the_second_policy(*args: Any, **kwargs: Any) -> Any:
        sampled.append(len(args[2]))
        for batch in real(*args, **kwargs):
            yield batch
            if len(sampled) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "sample_saved", until_the_second_policy)
    with pytest.raises(KeyboardInterrupt):
        run.run(config)
    begun = list(sampled)

    def counted(*args: Any, **kwargs: Any) -> Any:
        sampled.append(len(args[2]))
        return real(*args, **kwargs)

    monkeypatch.setattr(sampling, "sample_saved", counted)
    run.run(config)
    again = sampled[len(begun) :]
    assert begun[0] > 0 == again[0], "the first policy's answers were all there"
    assert 0 < again[1] < begun[1], "of the second some"


def test_a_prompt_that_a_stage_trained_on_is_refused(config: CompareConfig) -> None:
    heldout = next(row for row in read_rows(candidates(config), CandidateSet) if row.split == "heldout")
    (config.run_dir / "align" / runs.TRAINED).write_text(json.dumps([heldout.prompt_id]))
    with pytest.raises(RunError, match=r"was trained on it: run `trueup .*` again with this campaign's split"):
        run.run(config)


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_a_prompt_that_another_run_trained_on_is_refused(config: CompareConfig, tmp_path: Path, stage: str) -> None:
    other = as_another_run(config, tmp_path)
    heldout = next(row for row in read_rows(candidates(config), CandidateSet) if row.split == "heldout")
    (other / stage / runs.TRAINED).write_text(json.dumps([heldout.prompt_id]))
    with pytest.raises(RunError, match=rf"is to be compared on, and {other / stage} was trained on it"):
        run.run(config.model_copy(update={"others": {"ppo": other}}))


@pytest.mark.parametrize("name", [runs.TRAINED, QUESTIONS])
def test_without_its_list_of_prompts_no_stage_is_believed_to_have_trained_on_none(
    config: CompareConfig, name: str
) -> None:
    (config.run_dir / "align" / name).unlink()
    with pytest.raises(RunError, match=r"nothing proves that align trained on none .* run `trueup align CONFIG` again"):
        run.run(config)


def as_another_run(config: CompareConfig, folder: Path) -> Path:
    other = shutil.copytree(config.run_dir, folder / "other")
    manifest = json.loads((other / "align" / "manifest.json").read_text())
    manifest["identity"]["split"] = config.split.model_dump(mode="json")
    (other / "align" / "manifest.json").write_text(json.dumps(manifest))
    return other


def test_an_alignment_of_another_base_model_is_refused(config: CompareConfig, tmp_path: Path, bases: Any) -> None:
    other = as_another_run(config, tmp_path)
    for file in bases("llama").glob("tokenizer*"):
        shutil.copy(file, other / "align" / "model")
    with pytest.raises(RunError, match=r"compare\.others\.ppo: .* has another tokenizer"):
        run.run(config.model_copy(update={"others": {"ppo": other}}))


def test_a_run_that_was_not_aligned_is_no_policy_to_compare_with(config: CompareConfig, tmp_path: Path) -> None:
    other = as_another_run(config, tmp_path)
    shutil.rmtree(other / "align")
    with pytest.raises(RunError, match=r"other/align is not there: run `trueup align CONFIG` first"):
        run.run(config.model_copy(update={"others": {"ppo": other}}))


def test_an_alignment_with_another_split_is_refused(config: CompareConfig, tmp_path: Path) -> None:
    other = shutil.copytree(config.run_dir, tmp_path / "other")
    with pytest.raises(RunError, match=r"compare\.others\.ppo: .* was split differently"):
        run.run(config.model_copy(update={"others": {"ppo": other}}))


def test_answers_of_another_sft_policy_are_refused(config: CompareConfig) -> None:
    path = config.run_dir / "sft" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "duration_s": 1e6}))
    with pytest.raises(RunError, match="answers of another SFT policy"):
        run.run(config)


def test_a_run_without_held_out_answers_says_what_to_do(config: CompareConfig) -> None:
    change_candidates(config, lambda row: row.model_copy(update={"split": "train"}))
    with pytest.raises(DataError, match=r"no held-out prompt among them.*heldout_fraction"):
        run.run(config)


def test_a_prompt_that_this_campaign_does_not_hold_out_is_refused(config: CompareConfig) -> None:
    change_candidates(config, lambda row: row.model_copy(update={"split": "heldout"}))
    with pytest.raises(RunError, match="is not held out by this campaign's split"):
        run.run(config)


def test_answers_that_were_sampled_differently_are_refused(config: CompareConfig) -> None:
    seeds = iter(range(1000))
    change_candidates(config, lambda row: row.model_copy(update={"sampler": {**row.sampler, "seed": next(seeds)}}))
    with pytest.raises(RunError, match="sampled with different settings"):
        run.run(config)


def change_candidates(config: CompareConfig, change: Any) -> None:
    write_rows(candidates(config), [change(row) for row in read_rows(candidates(config), CandidateSet)])


def candidates(config: CompareConfig) -> Path:
    return config.run_dir / "candidates" / "candidates.jsonl"


def test_a_rubric_that_made_the_labels_speaks_for_them(config: CompareConfig) -> None:
    label = config.run_dir / "labels"
    label.mkdir()
    (label / "report.json").write_text(json.dumps({"by_source": {"simulated": 12}, "by_round": {1: 12}}))
    version = rubric_version("says-why")
    told = {"stage": "label", "identity": {"rubric": "says-why"}, "fingerprint": {"rubric": version}}
    manifest = json.loads((config.run_dir / "sft" / "manifest.json").read_text())
    (label / "manifest.json").write_text(json.dumps({**manifest, **told}))
    labels = inputs.read_labels(config.run_dir)
    assert labels == LabelOrigins({"simulated": 12}, "says-why", version)
    assert judges.rubric_judge(config, labels).made_the_labels
    assert not judges.rubric_judge(config, replace(labels, rubric_version="another")).made_the_labels

    (label / "report.json").write_text(json.dumps({"by_source": {"human": 12}, "by_round": {1: 12}}))
    labels = inputs.read_labels(config.run_dir)
    assert not judges.rubric_judge(config, labels).made_the_labels
