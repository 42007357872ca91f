"""What the card says of an ensemble: where its heads agree, and whether that tells anything."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from preferences import pair

from reward.card.evaluate import ScoredPairs, report_card
from reward.card.shares import difference_of_parts
from trueup.runs import Finding, StageRun


class Findings:
    def __init__(self) -> None:
        self.findings: list[Finding] = []


def card(right: np.ndarray, agreed: np.ndarray) -> tuple[Any, list[str]]:
    """Of two pairs to each prompt, which the mean of three heads orders rightly or not; one of them by a head that
    does not agree."""
    pairs = [pair(i // 2, "One two.", f"One two{'.' * (i % 3)}", label_id=str(i)) for i in range(len(right))]
    margins = np.where(right, 1.0, -1.0)[:, None] * np.where(agreed[:, None], [1.0, 1.0, 1.0], [-1.0, 2.0, 2.0])
    heads = np.stack([margins, np.zeros_like(margins)])
    stage = Findings()
    scored = ScoredPairs(pairs, margins.mean(axis=1).tolist(), [0.0] * len(pairs), heads)
    report = report_card(pairs[:40], scored, cast(StageRun, stage))
    return report.agreement, [finding.code for finding in stage.findings]


@pytest.mark.parametrize("tells", [True, False])
def test_a_disagreement_that_tells_nothing_is_warned_of_and_one_that_does_is_not(tells: bool) -> None:
    random = np.random.default_rng(0)
    agreed = random.random(400) < 0.6
    right = random.random(400) < np.where(agreed == tells, 0.9, 0.6)
    agreement, codes = card(right, agreed)
    assert agreement.heads == 3 and agreement.agree.value == pytest.approx(0.6, abs=0.06)
    where, elsewhere = agreement.right_where_agreed, agreement.right_elsewhere
    assert (where.n, elsewhere.n) == (agreed.sum(), 400 - agreed.sum())
    assert (where.ci_low > elsewhere.ci_high) == tells
    assert agreement.difference.ci_low > 0 if tells else agreement.difference.ci_high < 0
    assert ("disagreement_tells_nothing" in codes) != tells
    apart = (1 - agreed.mean()) / 2 * np.sqrt(3)  # the other side's answers have one score by all
    assert agreement.spread == pytest.approx(apart / np.std([*np.where(right, 1, -1), *np.zeros(400)]))


def test_heads_that_always_agree_tell_nothing() -> None:
    agreement, codes = card(np.random.default_rng(0).random(100) < 0.9, np.ones(100, dtype=bool))
    assert agreement.right_elsewhere is None and agreement.difference is None and agreement.agree.value == 1.0
    assert "disagreement_tells_nothing" in codes


def test_the_difference_of_two_parts_weighs_prompts_alike_and_its_interval_covers_what_was_planted() -> None:
    right, first = [1.0, 1.0, 0.0, 0.0, 1.0], [True, True, False, True, False]
    pairs = [pair(number, "a", "b", label_id=str(i)) for i, number in enumerate([1, 1, 1, 2, 2])]
    difference = difference_of_parts(pairs, right, first)
    assert difference.value == pytest.approx((1 + 0) / 2 - (0 + 1) / 2) and difference.n == 2
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        mood = random.normal(scale=0.1, size=60).repeat(3)  # of a prompt, so its pairs are alike
        parts = random.random(180) < 0.5
        rights = (random.random(180) < np.where(parts, 0.8, 0.6) + mood).astype(float).tolist()
        asked = [pair(i // 3, "a", "b", label_id=str(i)) for i in range(180)]
        found = difference_of_parts(asked, rights, parts.tolist())
        covered += found.low <= 0.2 <= found.high
    assert covered >= 90
