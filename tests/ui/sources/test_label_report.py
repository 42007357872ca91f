"""The figures of the label stage's report."""

from __future__ import annotations

import random
from typing import Any

import pytest

from trueup.data.records import Message, Ranking
from ui.sources.report import criteria_figures, share


@pytest.mark.parametrize("n", [*range(1, 60), 100, 1000, 9999])
def test_an_interval_holds_its_own_value_and_is_a_share_at_every_count(n: int) -> None:
    for successes in range(n + 1):
        made = share(successes, n)
        assert made.value is not None and made.ci_low is not None and made.ci_high is not None
        assert 0 <= made.ci_low <= made.value <= made.ci_high <= 1
        assert made.ci_low < made.ci_high and made.n == n


def judged(prompt: int, tiers: list[list[int]], **criteria: int | None) -> Ranking:
    keys: dict[str, Any] = {"split": "train", "label_id": "1", "source": "human", "annotator": "me", "created_utc": ""}
    keys |= {"completions": ["one", "two"], "completion_token_ids": [None, None], "finished": [True, True]}
    return Ranking(
        prompt_id=str(prompt),
        prompt=[Message(role="user", content="Why?")],
        tiers=tiers,
        criteria=criteria or None,
        **keys,
    )


def test_criteria_are_correlated_with_each_other_and_with_the_overall_choice() -> None:
    """`same` follows the choice, `against` contradicts it, `chance` knows nothing of it, `never` is always a tie."""
    chance, rows = random.Random(0), []
    for prompt in range(400):
        best = chance.randrange(2)
        sides = {"same": best, "against": 1 - best, "chance": chance.randrange(2), "never": None}
        rows.append(judged(prompt, [[best], [1 - best]], **sides))
    rows += [judged(0, [[0, 1]], same=None), judged(1, [[0], [1]])]
    figures = criteria_figures(rows)
    assert figures["same"].labels == 401 and figures["same"].ties == 1 and figures["never"].with_others == {}
    others = figures["same"].with_others
    assert (others["overall"].value, others["against"].value) == (1, -1)
    value, low, high = others["chance"].value, others["chance"].ci_low, others["chance"].ci_high
    assert value is not None and low is not None and high is not None
    assert -0.15 < low < value < high < 0.15 and low < 0 < high
    assert figures["against"].with_others["same"] == others["against"], "it is symmetric"
    assert criteria_figures([judged(1, [[0], [1]])]) == {}
