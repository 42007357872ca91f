"""The report card: accuracy by hand, and rules that read nothing beside it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from reward.evaluate import report_card
from reward.probe import ProbeScores
from trueup.data.records import Message, Preference
from trueup.runs import Finding, StageRun


class Findings:
    """What report_card needs of a stage: somewhere to put findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []


def pair(number: int, chosen: str, rejected: str, **keys: Any) -> Preference:
    return Preference(
        prompt=[Message(role="user", content=f"Question {number}?")],
        chosen=[Message(role="assistant", content=chosen)],
        rejected=[Message(role="assistant", content=rejected)],
        prompt_id=str(number),
        split="train",
        label_id=str(number),
        source="import",
        annotator=keys.pop("annotator", "ann"),
        created_utc="2026-01-01T00:00:00+00:00",
        **keys,
    )


def card(
    train: list[Preference],
    heldout: list[Preference],
    chosen: list[float],
    rejected: list[float],
    probe: ProbeScores | None = None,
) -> Any:
    stage = Findings()
    report = report_card(train, heldout, chosen, rejected, cast(StageRun, stage), probe=probe)
    assert report.findings == stage.findings, "the comparison reads them there"
    return report.plain(), [finding.code for finding in stage.findings]


SHORTER = [pair(i, "Two words.", "These are four words.") for i in range(40)]


def test_a_tie_is_half_right_and_slices_count_their_own_pairs() -> None:
    heldout = [
        pair(1, "a", "b", annotator="ann"),
        pair(2, "a", "b", annotator="bob"),
        pair(3, "a", "b", annotator="bob"),
        pair(4, "a", "b", annotator="bob"),
    ]
    report, _ = card(SHORTER, heldout, [1.0, 1.0, 0.0, 2.0], [0.0, 1.0, 1.0, 0.0])
    assert report["accuracy"]["value"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert report["by_annotator"]["ann"]["value"] == 1.0
    assert report["by_annotator"]["bob"]["n"] == 3 and report["by_annotator"]["bob"]["value"] == 0.5


def test_the_length_rule_takes_its_direction_from_training_pairs_alone() -> None:
    longer = [pair(i, "These are four words.", "Two words.") for i in range(40)]
    assert card(SHORTER, SHORTER, [1.0] * 40, [0.0] * 40)[0]["length_baseline"]["value"] == 1.0
    assert card(SHORTER, longer, [1.0] * 40, [0.0] * 40)[0]["length_baseline"]["value"] == 0.0


ANSWERS = {
    "English": ("Bread goes stale in the fridge", " because the cold makes its starch firm up again"),
    "Chinese": ("面包放在冰箱里会更快变硬", "因为低温让淀粉重新结晶所以最好放在室温下"),
    "Japanese": ("パンは冷蔵庫で早く硬くなる", "ので室温で保存するのがよいと言われている"),
    "Thai": ("ขนมปังจะแข็งเร็วขึ้นในตู้เย็น", "เพราะความเย็นทำให้แป้งตกผลึก"),
    "Khmer": ("នំប៉័ងឆាប់រឹងនៅក្នុងទូទឹកកក", "ព្រោះភាពត្រជាក់ធ្វើឱ្យម្សៅកក"),
}


@pytest.mark.parametrize("language", ANSWERS)
def test_a_preference_for_length_alone_is_one_in_every_script(language: str) -> None:
    start, more = ANSWERS[language]
    longer = [pair(i, start + more[: 6 + i % 9] + "。", start + "。") for i in range(40)]
    report, codes = card(longer, longer, [1.0] * 40, [0.0] * 40)
    assert report["length_baseline"]["value"] == 1.0 and "not_told_from_a_rule" in codes


def scores(right: list[bool]) -> tuple[list[float], list[float]]:
    return [float(each) for each in right], [0.5] * len(right)


def length_pairs(longer_wins: list[bool]) -> list[Preference]:
    return [pair(i, *(("One two.", "One.") if wins else ("One.", "One two."))) for i, wins in enumerate(longer_wins)]


LONGER_WINS = length_pairs([True] * 40)
THREE_IN_FOUR = [i % 4 != 0 for i in range(40)]


@pytest.mark.parametrize(
    ("rule_is_right", "model_is_right", "code"),
    [
        ([i % 2 == 0 for i in range(40)], [True] * 40, None),  # half, all
        ([True] * 40, [True] * 40, "not_told_from_a_rule"),  # equal everywhere: other prompts could differ
        (THREE_IN_FOUR, [i % 4 != 1 for i in range(40)], "not_told_from_a_rule"),  # as often, on other prompts
        (THREE_IN_FOUR, [i % 4 != 1 or i < 4 for i in range(40)], "not_told_from_a_rule"),  # by a point or two
        ([True] * 40, [i % 4 != 0 for i in range(40)], "explained_by_a_rule"),  # all, three in four
        ([True] * 40, [i % 2 == 0 for i in range(40)], "no_better_than_chance"),
    ],
)
def test_whether_a_model_is_more_than_a_ruler_is_read_off_the_paired_interval(
    rule_is_right: list[bool], model_is_right: list[bool], code: str | None
) -> None:
    report, codes = card(LONGER_WINS, length_pairs(rule_is_right), *scores(model_is_right))
    assert codes == ([code] if code else [])
    difference = report["best_baseline"]["difference"]
    assert difference["value"] == pytest.approx((sum(model_is_right) - sum(rule_is_right)) / 40)
    assert difference["ci_low"] < difference["value"] < difference["ci_high"] and difference["n"] == 40


def test_a_probe_stands_beside_the_model_with_the_difference_prompt_by_prompt() -> None:
    right = THREE_IN_FOUR
    by_probe = [(float(i % 2), 0.5) for i in range(40)]  # every other pair
    report, _ = card(SHORTER, length_pairs(right), *scores(right), probe=ProbeScores(by_probe, "layer 1 of 2"))
    assert report["probe"]["value"] == 0.5 and report["probe"]["reason"] == "layer 1 of 2"
    difference = report["probe"]["difference"]
    assert difference["value"] == pytest.approx(report["accuracy"]["value"] - 0.5) and difference["n"] == 40
    assert difference["ci_low"] < difference["value"] < difference["ci_high"]


def test_the_best_rule_is_picked_on_training_pairs_and_not_where_it_is_examined() -> None:
    unfinished = [
        pair(i, "One two.", "One.", rejected_finished=i % 2 == 0) for i in range(40)
    ]  # finishing says no more
    examined = [pair(i, "One.", "One two.", chosen_finished=True, rejected_finished=False) for i in range(40)]
    report, _ = card(unfinished, examined, *scores([True] * 40))
    assert report["baselines"]["finished, then longer"]["value"] == 1.0, "the best, on the pairs that are examined"
    assert report["best_baseline"]["name"] == "shorter or longer, as in training"


def test_each_prompt_weighs_the_same_however_many_pairs_there_are_of_it() -> None:
    heldout = [pair(1, "a", "b")] + [pair(2, "a", "b", annotator=str(k)) for k in range(9)]
    report, _ = card(SHORTER, heldout, [1.0] + [0.0] * 9, [0.5] * 10)
    accuracy = report["accuracy"]
    assert (accuracy["value"], accuracy["n"], accuracy["prompts"]) == (0.5, 10, 2)


def test_an_accuracy_of_all_is_no_certainty() -> None:
    accuracy = card(SHORTER, SHORTER, *scores([True] * 40))[0]["accuracy"]
    assert accuracy["value"] == accuracy["ci_high"] == 1.0 and 0.9 < accuracy["ci_low"] < 0.95


def test_a_model_that_guesses_fails_and_one_without_heldout_pairs_says_so() -> None:
    chosen = [float(i % 2) for i in range(40)]
    assert "no_better_than_chance" in card(SHORTER, SHORTER, chosen, [0.5] * 40)[1]
    report, codes = card(SHORTER, [], [], [])
    assert report["accuracy"] is None and codes == ["not_evaluated"]
