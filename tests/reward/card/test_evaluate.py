"""The report card: accuracy by hand, beside chance, baselines and the ceiling."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from preferences import pair

from reward.card.baselines import BAG, learn_baselines
from reward.card.ceiling import ceiling
from reward.card.evaluate import ScoredPairs, mistakes, report_card
from reward.probe import CurvePoint, ProbeScores
from trueup.data.records import Preference
from trueup.runs import Finding, StageRun
from trueup.statistics.reliability import best_accuracy


class Findings:
    """What report_card needs of a stage: somewhere to put findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []


def card(
    train: list[Preference], heldout: list[Preference], chosen: list[float], rejected: list[float], **keys: Any
) -> Any:
    stage = Findings()
    report = report_card(train, ScoredPairs(heldout, chosen, rejected), cast(StageRun, stage), **keys)
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


def test_rounds_are_in_the_order_of_their_numbers_and_one_alone_is_no_slice() -> None:
    heldout = [pair(i, "a", "b", round=number) for i, number in enumerate((10, 2, 1))]
    report, _ = card(SHORTER, heldout, [1.0] * 3, [0.0] * 3)
    assert list(report["by_round"]) == ["round 1", "round 2", "round 10"]
    assert "by_round" not in card(SHORTER, heldout[:1], [1.0], [0.0])[0]


def test_kendalls_tau_is_that_of_rankings_and_of_them_alone() -> None:
    """Two rankings of three, one in order and one with two neighbours swapped: 1 and (2 - 1) / 3. A pair is none."""
    from scipy.stats import kendalltau

    scores = {1: {"a": 3.0, "b": 2.0, "c": 1.0}, 2: {"a": 3.0, "b": 1.0, "c": 2.0}}
    rankings = [
        pair(prompt, *sides, label_id=f"ranking {prompt}")
        for prompt in scores
        for sides in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    heldout = [*rankings, pair(3, "a", "b")]
    chosen, rejected = (
        [scores[i][p.texts[side]] for i, p in zip((1, 1, 1, 2, 2, 2), rankings, strict=True)] + [float(side)]
        for side in (0, 1)
    )
    report, _ = card(SHORTER, heldout, chosen, rejected)
    each = [kendalltau([3, 2, 1], list(of.values())).statistic for of in scores.values()]
    assert report["kendall_tau"]["value"] == pytest.approx(sum(each) / 2) == pytest.approx((1 + 1 / 3) / 2)
    assert report["kendall_tau"]["n"] == 2
    report, _ = card(SHORTER, heldout[-1:], chosen[-1:], rejected[-1:])
    assert "kendall_tau" not in report


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


def test_the_learning_curve_is_the_mean_over_the_probes_of_a_share_and_each_prompt_weighs_the_same() -> None:
    heldout = [pair(1, "a", "b"), pair(2, "a", "b"), pair(2, "a", "b", annotator="bob")]
    curve = {
        0.5: CurvePoint(5, [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]),
        1.0: CurvePoint(10, [[1.0, 1.0, -1.0]]),
    }
    report, _ = card(SHORTER, heldout, *scores([True] * 3), probe=ProbeScores([(1.0, 0.0)] * 3, "layer 1 of 2", curve))
    half, whole = report["learning_curve"]
    assert (half["share"], half["prompts"], half["accuracy"]["value"]) == (0.5, 5, 0.5)
    assert (whole["share"], whole["prompts"], whole["accuracy"]["value"]) == (1.0, 10, 0.75)
    assert (whole["accuracy"]["n"], whole["accuracy"]["prompts"]) == (3, 2)


def test_confidence_and_accuracy_of_a_point_of_the_curve_are_means_over_the_same_prompts() -> None:
    heldout = [pair(1, "a", "b")] + [pair(2, "a", "b", annotator=str(k)) for k in range(9)]
    report, _ = card(SHORTER, heldout, [math.log(0.61 / 0.39)] + [math.log(0.64 / 0.36)] * 9, [0.0] * 10)
    (point,) = report["reliability"]
    assert point["confidence"] == pytest.approx((0.61 + 0.64) / 2) and point["right"]["prompts"] == 2


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


# ---- Words without their order ----------------------------------------------------------------------------------


def test_a_bag_of_words_learns_which_words_are_preferred_and_is_measured_on_other_prompts() -> None:
    """A word decides at equal length. In half of the training pairs nothing does: learning these by heart helps not."""
    told = [pair(i, f"good n{i}", f"bad m{i}") for i in range(40)]
    noise = [pair(100 + i, f"x{i}", f"y{i}") for i in range(40)]
    report, codes = card(told + noise, [pair(i + 200, "good", "bad") for i in range(20)], [1.0] * 20, [0.0] * 20)
    assert report["baselines"][BAG]["value"] == 1.0 and report["baselines"][BAG]["n"] == 20
    assert report["best_baseline"]["name"] == BAG, "no rule of length can tell them"
    assert codes == ["not_told_from_a_rule"]
    assert learn_baselines(told + noise)[BAG].accuracy == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(("chosen", "rejected"), [("", ""), ("same", "same"), ("...", "!!")])
def test_a_bag_of_words_without_words_to_tell_answers_apart_tosses_a_coin(chosen: str, rejected: str) -> None:
    pairs = [pair(i, chosen, rejected) for i in range(8)]
    assert learn_baselines(pairs)[BAG].rule(pairs) == [0.5] * 8


def test_a_prompt_with_many_pairs_does_not_outvote_the_others_in_the_bag() -> None:
    many = [pair(0, "bad", "good", annotator=str(k)) for k in range(30)]
    others = [pair(i, "good", "bad") for i in range(1, 4)]
    assert learn_baselines(many + others)[BAG].rule([pair(9, "good", "bad")]) == [1.0]


# ---- The ceiling ------------------------------------------------------------------------------------------------


def votes(number: int, *for_tea: bool) -> list[Preference]:
    """What each annotator says of the same two answers."""
    return [
        pair(number, *(("tea", "milk") if tea else ("milk", "tea")), annotator=str(k)) for k, tea in enumerate(for_tea)
    ]


def test_the_ceiling_is_the_accuracy_of_a_perfect_model_whose_annotators_err_alike() -> None:
    """Annotators who are right in nine of ten agree in 0.81 + 0.01, of which the formula makes 0.9 again."""
    assert best_accuracy(0.82) == pytest.approx(0.9)
    assert best_accuracy(1) == 1 and best_accuracy(0.5) == best_accuracy(0.3) == 0.5
    labelled = [vote for i in range(100) for vote in votes(i, True, i >= 18)]
    found = ceiling(labelled)
    assert found and found.agreement.value == pytest.approx(0.82) and found.accuracy.value == pytest.approx(0.9)
    assert found.accuracy.n == 100 and found.accuracy.ci_low is not None and found.accuracy.ci_high is not None
    assert found.accuracy.ci_low < 0.9 < found.accuracy.ci_high


def test_all_two_annotators_of_a_pair_count_and_each_prompt_weighs_the_same() -> None:
    found = ceiling([*votes(0, True, True, False), *votes(1, True, True)])
    assert found and found.agreement.value == pytest.approx((1 / 3 + 1) / 2)
    assert (found.agreement.n, found.agreement.prompts) == (2, 2)


@pytest.mark.parametrize(
    "labelled",
    [
        [],
        [pair(i, "tea", "milk") for i in range(5)],
        [pair(0, "tea", "milk"), pair(0, "milk", "tea")],  # one annotator twice
        [pair(0, "tea", "milk"), pair(0, "tea", "water", annotator="bob")],
        [pair(0, "tea", "milk"), pair(1, "tea", "milk", annotator="bob")],
    ],
)
def test_there_is_no_ceiling_where_no_two_annotators_judged_the_same_two_answers(labelled: list[Preference]) -> None:
    assert ceiling(labelled) is None
    assert "ceiling" not in card(SHORTER, SHORTER, *scores([True] * 40), labelled=labelled)[0]


# ---- Findings ---------------------------------------------------------------------------------------------------


def test_a_model_that_is_right_on_the_few_prompts_there_are_is_not_told_from_shuffled_labels() -> None:
    """Of the sixteen ways to turn the labels of four prompts round, one does as well: more than 1 in 20."""
    report, codes = card(SHORTER, length_pairs([True] * 4), *scores([True] * 4))
    assert codes == ["shuffled_labels_would_do"] and report["shuffled_p"] == 1 / 16
    assert report["accuracy"]["ci_low"] > 0.5, "the interval alone would let it pass"
    assert "shuffled_labels_would_do" not in card(SHORTER, length_pairs([True] * 5), *scores([True] * 5))[1]


@pytest.mark.parametrize(("scale", "found"), [(1.0, False), (4.0, True)])
def test_a_model_that_is_surer_than_it_is_right_is_warned_of(scale: float, found: bool) -> None:
    margin = scale * math.log(3)  # three in four are right
    report, codes = card(
        length_pairs([True, False] * 20),
        length_pairs([True, True, False, False] * 50),
        [margin if i % 4 else 0.0 for i in range(200)],
        [0.0 if i % 4 else margin for i in range(200)],
    )
    assert report["calibration"]["temperature"] == pytest.approx(scale, rel=0.01)
    assert ("overconfident" in codes) == found
    assert (report["calibration"]["brier_at_temperature"] < report["calibration"]["brier"]) == found


def test_a_model_that_follows_length_is_told_by_the_pairs_that_speak_against_it() -> None:
    longer_wins = [i % 4 != 0 for i in range(80)]
    report, codes = card(length_pairs([True, False] * 20), length_pairs(longer_wins), *scores(longer_wins))
    assert report["by_length"]["longer"]["value"] == 1 and report["by_length"]["shorter"]["value"] == 0
    assert "follows_length" in codes


def test_pairs_are_sliced_by_grade_and_by_the_source_of_their_label() -> None:
    heldout = [pair(i, "a", "b", strength=(None, 1, 3)[i % 3], source=("human", "judge")[i % 2]) for i in range(12)]
    report, _ = card(SHORTER, heldout, *scores([i % 2 == 0 for i in range(12)]))
    assert {name: share["n"] for name, share in report["by_strength"].items()} == {"1": 4, "3": 4, "none": 4}
    assert report["by_source"]["human"]["value"] == 1 and report["by_source"]["judge"]["value"] == 0


def test_the_mistakes_are_the_surest_first_with_both_answers_and_one_of_a_prompt() -> None:
    heldout = [pair(i // 2, f"right {i}", f"wrong {i}") for i in range(40)]
    rejected = [float(i) for i in range(40)]
    rows = mistakes(ScoredPairs(heldout, [0.0] * 40, rejected))
    assert [row.rejected for row in rows] == [f"wrong {i}" for i in range(39, 19, -2)]
    assert rows[0].confidence == pytest.approx(1) and rows[0].chosen == "right 39"
    assert mistakes(ScoredPairs(heldout, rejected, [0.0] * 40)) == [], "a tie is no mistake"
