"""The report card: accuracy by hand, and rules that read nothing beside it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from reward.evaluate import report_card
from trueup.records import Message, Preference
from trueup.runs import StageRun


class Findings:
    """What report_card needs of a stage: somewhere to put findings."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def find(self, level: str, code: str, message: str) -> None:
        self.codes.append(code)


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


def card(train: list[Preference], heldout: list[Preference], chosen: list[float], rejected: list[float]) -> Any:
    stage = Findings()
    return report_card(train, heldout, chosen, rejected, cast(StageRun, stage)), stage.codes


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
    assert report["length_baseline"]["value"] == 1.0 and "explained_by_a_rule" in codes


def test_a_model_that_is_no_better_than_a_ruler_is_reported() -> None:
    assert "explained_by_a_rule" in card(SHORTER, SHORTER, [1.0] * 40, [0.0] * 40)[1]
    mixed = [pair(i, *(("One two.", "One.") if i % 2 else ("One.", "One two."))) for i in range(40)]
    assert card(mixed, mixed, [1.0] * 40, [0.0] * 40)[1] == []


def test_a_model_that_guesses_fails_and_one_without_heldout_pairs_says_so() -> None:
    chosen = [float(i % 2) for i in range(40)]
    assert "no_better_than_chance" in card(SHORTER, SHORTER, chosen, [0.5] * 40)[1]
    report, codes = card(SHORTER, [], [], [])
    assert report["accuracy"] is None and codes == ["not_evaluated"]
