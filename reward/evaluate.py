"""The reward model's report card: is it right on prompts it never saw, and is it more than a ruler?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trueup.console import say
from trueup.records import Preference
from trueup.runs import StageRun
from trueup.statistics import bootstrap_mean, expected_calibration_error, fit_temperature, spearman
from trueup.words import count_words


def report_card(
    train: list[Preference],
    heldout: list[Preference],
    chosen: list[float],
    rejected: list[float],
    stage: StageRun,
    whose: str = "",
) -> dict[str, Any]:
    """Accuracy on held-out pairs beside what the length alone explains, calibration, and accuracy by slice.

    chosen, rejected  scores of the held-out pairs, in their order
    whose             how findings begin, where the stage's one reward model is not meant

    Intervals are bootstrapped over prompts, since the pairs of one prompt are not independent. The temperature and the
    calibration error are fitted and measured on the same held-out pairs: read them as a description.
    """
    report: dict[str, Any] = {"pairs": {"train": len(train), "heldout": len(heldout)}}
    if not heldout:
        stage.find(
            "warn", "not_evaluated", "no labelled prompt is held out, so the reward model's accuracy is not known"
        )
        return {**report, "accuracy": None, "length_baseline": None, "baselines": {}}

    right = [_half_for_ties(a - b) for a, b in zip(chosen, rejected, strict=True)]
    accuracy = over_prompts(heldout, right)
    baselines = {name: _baseline(train, heldout, rule) for name, rule in BASELINES.items()}
    length = baselines["shorter or longer, as in training"]
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    say(
        f"{'accuracy':<12} {_percent(accuracy)} on {len(heldout)} held-out pairs; length alone {_percent(length)}, "
        f"{', '.join(f'{name} {_percent(b)}' for name, b in baselines.items() if b is not length)}"
    )
    if accuracy["ci_low"] <= 0.5:
        stage.find(
            "fail",
            "no_better_than_chance",
            f"{whose}accuracy {_percent(accuracy)} does not exclude 50 %: more labels, or clearer ones",
        )
    else:
        rule, best = max(baselines.items(), key=lambda named: named[1]["value"])
        if accuracy["value"] <= best["value"]:
            no_more = f"is no more than a rule that reads nothing, {rule}: {_percent(best)}"
            stage.find("warn", "explained_by_a_rule", f"{whose}accuracy {_percent(accuracy)} {no_more}")

    lengths = [_longer(pair) for pair in heldout]
    values = chosen + rejected
    mean = sum(values) / len(values)
    return {
        **report,
        "accuracy": accuracy,
        "length_baseline": length,
        "baselines": baselines,
        "calibration": {"ece": expected_calibration_error(margins), "temperature": fit_temperature(margins)},
        "reward_length_spearman": spearman(margins, lengths),
        "by_category": _by(heldout, right, lambda pair: pair.category or "none"),
        "by_annotator": _by(heldout, right, lambda pair: pair.annotator),
        "agreement_ceiling": None,
        "normalisation": {"mean": mean, "std": (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5},
    }


# ---- Baselines: rules that read nothing --------------------------------------------------------------------------


def _words(pair: Preference) -> tuple[float, float]:
    return count_words(pair.chosen[0].content), count_words(pair.rejected[0].content)


def _longer(pair: Preference) -> float:
    chosen, rejected = _words(pair)
    return chosen - rejected


def _finished_then_longer(pair: Preference) -> float:
    return 1000.0 * (pair.chosen_finished - pair.rejected_finished) + _longer(pair)


BASELINES: dict[str, Callable[[Preference], float]] = {
    "shorter or longer, as in training": _longer,
    "finished, then longer": _finished_then_longer,
    "nearest to the best length": lambda pair: 0.0,  # its length is tuned on the training pairs, see _baseline
}


def _baseline(
    train: list[Preference], heldout: list[Preference], rule: Callable[[Preference], float]
) -> dict[str, Any]:
    """Held-out accuracy of a rule whose direction, or target length, was chosen on the training pairs."""
    if rule is BASELINES["nearest to the best length"]:
        target = max(range(1, 120), key=lambda n: sum(_half_for_ties(_nearness(pair, n)) for pair in train))
        return {**over_prompts(heldout, [_half_for_ties(_nearness(pair, target)) for pair in heldout]), "words": target}
    sign = 1 if sum(_half_for_ties(rule(pair)) for pair in train) >= len(train) / 2 else -1
    return {**over_prompts(heldout, [_half_for_ties(sign * rule(pair)) for pair in heldout]), "reversed": sign < 0}


def _nearness(pair: Preference, target: int) -> float:
    chosen, rejected = _words(pair)
    return abs(rejected - target) - abs(chosen - target)


# ---- Small ------------------------------------------------------------------------------------------------------


def _half_for_ties(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def over_prompts(pairs: list[Preference], right: list[float]) -> dict[str, Any]:
    """Mean of `right` with its bootstrap interval over prompts."""
    groups: dict[str, list[float]] = {}
    for pair, value in zip(pairs, right, strict=True):
        groups.setdefault(pair.prompt_id, []).append(value)
    interval = bootstrap_mean(list(groups.values()))
    return {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": len(pairs)}


def _by(pairs: list[Preference], right: list[float], key: Callable[[Preference], str]) -> dict[str, Any]:
    slices: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        slices.setdefault(key(pair), []).append(i)
    return {
        name: over_prompts([pairs[i] for i in rows], [right[i] for i in rows]) for name, rows in sorted(slices.items())
    }


def _percent(interval: dict[str, Any]) -> str:
    return f"{interval['value']:.0%} [{interval['ci_low']:.0%}, {interval['ci_high']:.0%}]"
