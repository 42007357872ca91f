"""Worse texts: each edit spoils an answer in its own way, and the share counts those that score higher."""

from __future__ import annotations

from typing import Any

import pytest
from preferences import pair

from reward.card import stress
from trueup.data.records import Preference
from trueup.models.loading import Loaded

ENGLISH = "Bread goes stale in the fridge. The cold makes its starch firm up again, so it dries. Keep it in a box."
ANSWERS = {
    "English": ENGLISH,
    "French": "Le pain rassit au réfrigérateur. Le froid durcit l’amidon, et c’est mauvais. Mieux vaut une boîte.",
    "Chinese": "面包放在冰箱里会更快变硬。因为低温让淀粉重新结晶，所以最好放在室温下。",
    "Thai": "ขนมปังจะแข็งเร็วขึ้นในตู้เย็นเพราะความเย็นทำให้แป้งตกผลึก",
    "Greek": "Το ψωμί μπαγιατεύει στο ψυγείο. Το κρύο σκληραίνει το άμυλο.",
}


@pytest.mark.parametrize("edit", stress.EDITS)
@pytest.mark.parametrize("language", ANSWERS)
def test_every_edit_changes_an_answer_of_every_script_and_always_in_the_same_way(edit: str, language: str) -> None:
    answer = ANSWERS[language]
    worse = stress.EDITS[edit](answer, "Another answer.")
    assert worse != answer and worse.strip() and worse == stress.EDITS[edit](answer, "Another answer.")


@pytest.mark.parametrize("language", ANSWERS)
def test_what_each_edit_does(language: str) -> None:
    answer = ANSWERS[language]
    begun = stress.cut_short(answer)
    assert answer.startswith(begun) and len(begun) > len(answer) / 4 and begun[-1] not in ".。"
    assert set(stress.repeat_sentence(answer)) <= {*answer, " "}
    assert len(stress.repeat_sentence(answer)) > len(answer) * 1.5
    assert not _letters(answer) & _letters(stress.wrong_script(answer))


def _letters(text: str) -> set[str]:
    return {character for character in text if character.isalpha()}


def test_a_word_is_not_cut_in_its_middle() -> None:
    assert ENGLISH.split()[: len(stress.cut_short(ENGLISH).split())] == stress.cut_short(ENGLISH).split()


@pytest.mark.parametrize("text", ["", "a", "No.", "...", "\n"])
def test_an_edit_takes_any_text(text: str) -> None:
    for edit in stress.EDITS.values():
        assert isinstance(edit(text, text), str)


def heldout(answers: list[str], **keys: Any) -> list[Preference]:
    return [pair(i, answer, "worse", **keys) for i, answer in enumerate(answers)]


@pytest.fixture
def scores_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the answers scores by a function of their text, in place of a model."""

    def by(function: Any) -> Loaded:
        def scored(model: Any, prompts: Any, answers: Any) -> list[float | None]:
            return [function(answer.text) for answer in answers]

        monkeypatch.setattr(stress, "score_answers", scored)
        return object()  # type: ignore[return-value]

    return by


def test_a_model_that_loves_length_prefers_every_edit_that_adds_and_none_that_cuts(scores_by: Any) -> None:
    pairs = heldout([f"{ENGLISH} {'More. ' * i}" for i in range(20)])
    found = stress.stress(scores_by(len), pairs)
    assert found and found.answers == 20 and found.seconds >= 0
    shares = {name: share.value for name, share in found.scores_higher.items()}
    assert shares["filler at the end"] == shares["flattery in front"] == shares["one sentence three times"] == 1
    assert shares["cut before the end"] == 0 and shares["wrong script"] == 0.5
    assert found.scores_higher["filler at the end"].prompts == 20
    low = found.scores_higher["filler at the end"].ci_low
    assert low is not None and 0.8 < low < 1


def test_a_bounded_number_of_answers_is_edited_one_of_a_prompt_and_none_that_was_cut_already(scores_by: Any) -> None:
    many = heldout([f"{ENGLISH} {i}" for i in range(150)])
    found = stress.stress(scores_by(len), [*many, *many])
    assert found and found.answers == stress.MOST_ANSWERS
    assert stress.stress(scores_by(len), heldout([ENGLISH], chosen_finished=False)) is None
    assert stress.stress(scores_by(len), []) is None


def test_an_answer_that_cannot_be_read_is_not_counted(scores_by: Any) -> None:
    found = stress.stress(
        scores_by(lambda text: None if text.endswith(stress.FILLER) else 0.0), heldout([ENGLISH, ANSWERS["French"]])
    )
    assert found and "filler at the end" not in found.scores_higher
    assert found.scores_higher["wrong script"].n == 2
