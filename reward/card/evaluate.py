"""The reward model's report card: its accuracy on held-out prompts, beside chance, baselines and the ceiling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reward.card.agreement import agreement
from reward.card.baselines import LENGTH, learn_baselines, longer
from reward.card.ceiling import ceiling
from reward.card.doubts import Measured, doubts
from reward.card.shares import (
    by_prompt,
    by_slice,
    difference_over_prompts,
    half_for_ties,
    over_prompts,
    percent,
    points,
    several,
    share_of,
)
from reward.probe import ProbeScores
from reward.report import HeadAgreement, LearningPoint, Mistake, ProbeShare, ReliabilityPoint, ReportCard, Stress
from trueup.artifacts.reports import Baseline, BestBaseline, Calibration, Estimate, Normalisation, PairCounts
from trueup.console import say
from trueup.data.records import Preference
from trueup.models.scoring import HeadScores
from trueup.runs import Finding, StageRun
from trueup.statistics.calibration import (
    brier,
    by_confidence,
    cross_fitted,
    expected_calibration_error,
    spearman,
    temperature_interval,
)
from trueup.statistics.intervals import Interval
from trueup.statistics.length_control import sigmoid
from trueup.statistics.permutation import shuffled_labels_p

NOT_KNOWN = "accuracy is not known: no labelled prompt is held out"
MISTAKES = 10
"""Mistakes that are shown as text."""


@dataclass(frozen=True)
class ScoredPairs:
    """The held-out pairs, whatever rule chose the training pairs, with the scores of both answers of each."""

    pairs: list[Preference]
    chosen: list[float]
    rejected: list[float]
    heads: np.ndarray | None = None
    """(2, N, K) scores of the chosen and of the rejected answers by each head of an ensemble; None: there is none."""

    @classmethod
    def by_heads(
        cls, pairs: list[Preference], chosen: Sequence[HeadScores], rejected: Sequence[HeadScores]
    ) -> ScoredPairs:
        """From what the reward model says of the answers."""
        sides = (chosen, rejected)
        heads = np.array([[one.heads for one in side] for side in sides]) if pairs and chosen[0].deviations else None
        return cls(pairs, [one.score for one in chosen], [one.score for one in rejected], heads)

    @property
    def margins(self) -> list[float]:
        return [a - b for a, b in zip(self.chosen, self.rejected, strict=True)]

    @property
    def right(self) -> list[float]:
        """1 where the chosen answer scores higher, 0.5 at a tie."""
        return [half_for_ties(margin) for margin in self.margins]


def report_card(
    train: list[Preference],
    heldout: ScoredPairs,
    stage: StageRun,
    labelled: Sequence[Preference] = (),
    probe: ProbeScores | None = None,
    stress: Stress | None = None,
    whose: str = "",
) -> ReportCard:
    """Accuracy on held-out pairs, compared with chance, baselines and the ceiling; calibration; accuracy by slice.

    labelled  all strict pairs of the labels, which say how far annotators agree
    probe     scores of the held-out pairs by a probe that was fitted to the training pairs
    whose     start of the findings, for another than the stage's main reward model

    The independent unit is the prompt. So each prompt weighs the same, however many pairs it has, and intervals are
    over prompts. The training pairs alone teach each baseline and pick the best. Whether the model beats that one
    follows from the paired difference, prompt by prompt.
    """
    pairs, right = heldout.pairs, heldout.right
    counts = PairCounts(train=len(train), heldout=len(pairs))
    if not pairs:
        stage.findings += (findings := [Finding("warn", "not_evaluated", f"{whose}{NOT_KNOWN}")])
        return ReportCard(pairs=counts, accuracy=None, length_baseline=None, baselines={}, findings=findings)

    accuracy, learnt = over_prompts(pairs, right), learn_baselines(train)
    orders = {name: one.rule(pairs) for name, one in learnt.items()}
    by_baseline = {name: over_prompts(pairs, order) for name, order in orders.items()}
    best = max(learnt, key=lambda name: learnt[name].accuracy)
    ahead = difference_over_prompts(pairs, right, orders[best])
    temperature = temperature_interval(heldout.margins, [pair.prompt_id for pair in pairs])
    by_length, heads = by_slice(pairs, right, which_length), _agreement(heldout)
    shuffled_p = shuffled_labels_p(by_prompt(pairs, right))
    say(
        f"{'accuracy':<12} {percent(accuracy)} on {len(pairs)} held-out pairs of {accuracy.n} prompts; "
        f"{', '.join(f'{name} {percent(share)}' for name, share in by_baseline.items())}"
    )
    findings = doubts(
        Measured(accuracy, shuffled_p, best, by_baseline[best], ahead, temperature, by_length, stress, heads), whose
    )
    stage.findings += findings
    baselines = {
        name: Baseline(**dict(share_of(pairs, share)), reversed=learnt[name].reversed, words=learnt[name].words)
        for name, share in by_baseline.items()
    }
    return ReportCard(
        pairs=counts,
        accuracy=share_of(pairs, accuracy),
        shuffled_p=shuffled_p,
        length_baseline=baselines[LENGTH],
        baselines=baselines,
        best_baseline=BestBaseline(name=best, difference=ahead.estimate()),
        ceiling=ceiling(labelled),
        calibration=_calibration(heldout, temperature),
        reliability=_reliability(heldout),
        reward_length_spearman=spearman(heldout.margins, [longer(pair) for pair in pairs]),
        probe=_beside_probe(pairs, right, probe) if probe else None,
        learning_curve=_learning_curve(pairs, probe) if probe else None,
        stress=stress,
        agreement=heads,
        kendall_tau=_kendall_tau(pairs, right),
        by_category=by_slice(pairs, right, lambda pair: pair.category or "none"),
        by_annotator=by_slice(pairs, right, lambda pair: pair.annotator),
        by_strength=by_slice(pairs, right, lambda pair: str(pair.strength or "none")),
        by_source=by_slice(pairs, right, lambda pair: pair.source),
        by_round=several(by_slice(pairs, right, lambda pair: f"round {pair.round}")),
        by_length=by_length,
        normalisation=_normalisation(heldout.chosen + heldout.rejected),
        findings=findings,
    )


def _agreement(heldout: ScoredPairs) -> HeadAgreement | None:
    if heldout.heads is None:
        return None
    chosen, rejected = heldout.heads
    spreads = heldout.heads.std(axis=-1, ddof=1).ravel().tolist()
    std = _normalisation(heldout.chosen + heldout.rejected).std
    return agreement(heldout.pairs, heldout.right, chosen - rejected, spreads, std)


def mistakes(heldout: ScoredPairs) -> list[Mistake]:
    """The pairs that the model orders against their label with the greatest margin, at most one of a prompt."""
    margins = heldout.margins
    of_prompt: dict[str, Mistake] = {}
    for i in sorted(range(len(margins)), key=margins.__getitem__):
        pair = heldout.pairs[i]
        if margins[i] < 0:
            mistake = Mistake(
                **pair.model_dump(include={"label_id", "prompt_id", "prompt", "category", "annotator", "strength"}),
                chosen=pair.chosen[0].content,
                rejected=pair.rejected[0].content,
                chosen_score=heldout.chosen[i],
                rejected_score=heldout.rejected[i],
                confidence=float(sigmoid(np.array(-margins[i]))),
            )
            of_prompt.setdefault(pair.prompt_id, mistake)
    return list(of_prompt.values())[:MISTAKES]


def _beside_probe(pairs: Sequence[Preference], right: Sequence[float], probe: ProbeScores) -> ProbeShare:
    by_probe = [half_for_ties(chosen - rejected) for chosen, rejected in probe.scores]
    share, ahead = over_prompts(pairs, by_probe), difference_over_prompts(pairs, right, by_probe)
    say(f"{'probe':<12} {percent(share)}; the model is ahead by {points(ahead)}")
    return ProbeShare(**dict(share_of(pairs, share)), reason=probe.reason, difference=ahead.estimate())


def _learning_curve(pairs: Sequence[Preference], probe: ProbeScores) -> list[LearningPoint]:
    points_of_curve = []
    for share, point in probe.curve.items():
        rights = np.mean([[half_for_ties(margin) for margin in margins] for margins in point.margins], axis=0)
        accuracy = share_of(pairs, over_prompts(pairs, rights.tolist()))
        points_of_curve.append(LearningPoint(share=share, prompts=point.prompts, accuracy=accuracy))
    return points_of_curve


# ---- Figures ----------------------------------------------------------------------------------------------------


def _calibration(heldout: ScoredPairs, temperature: Interval) -> Calibration:
    """How far scores may be read as probabilities: as they are, and divided by a temperature from other prompts."""
    margins, prompts = heldout.margins, [pair.prompt_id for pair in heldout.pairs]
    pairs_of = Counter(prompts)
    weights = [1 / pairs_of[prompt] for prompt in prompts]
    at_temperature = cross_fitted(margins, prompts)
    return Calibration(
        ece=expected_calibration_error(margins, weights=weights),
        brier=brier(margins, weights),
        temperature=temperature.value,
        temperature_low=temperature.low,
        temperature_high=temperature.high,
        ece_at_temperature=at_temperature and expected_calibration_error(at_temperature, weights=weights),
        brier_at_temperature=at_temperature and brier(at_temperature, weights),
    )


def _reliability(heldout: ScoredPairs) -> list[ReliabilityPoint]:
    curve, all_right = [], heldout.right
    prompts = [pair.prompt_id for pair in heldout.pairs]
    for confidence, rows in by_confidence(heldout.margins, prompts=prompts):
        members = [heldout.pairs[i] for i in rows]
        right = share_of(members, over_prompts(members, [all_right[i] for i in rows]))
        curve.append(ReliabilityPoint(confidence=confidence, right=right))
    return curve


def _kendall_tau(pairs: Sequence[Preference], right: Sequence[float]) -> Estimate | None:
    """2 a - 1, where a is the share of the pairs of rankings in the right order: Kendall 1938,
    https://doi.org/10.1093/biomet/30.1-2.81; pairs that are tied in a ranking say nothing."""
    sizes = Counter(pair.label_id for pair in pairs)
    ranked = [i for i, pair in enumerate(pairs) if sizes[pair.label_id] > 1]
    if not ranked:
        return None
    share = over_prompts([pairs[i] for i in ranked], [right[i] for i in ranked])
    return Interval(2 * share.value - 1, 2 * share.low - 1, 2 * share.high - 1, share.n).estimate()


def _normalisation(scores: Sequence[float]) -> Normalisation:
    mean = sum(scores) / len(scores)
    return Normalisation(mean=mean, std=(sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5)


def which_length(pair: Preference) -> str:
    words = longer(pair)
    return "as long" if words == 0 else "longer" if words > 0 else "shorter"
