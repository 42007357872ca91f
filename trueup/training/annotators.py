"""How far labels are believed: weights of annotators and the share of wrong labels, measured by the label stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from trueup.artifacts.reports import LabelSources
from trueup.console import say
from trueup.data.records import Preference
from trueup.errors import DataError
from trueup.runs import FinishedStage
from trueup.statistics.reliability import best_accuracy, label_weight
from trueup.training.config import BelievedConfig, PreferenceConfig

C = TypeVar("C", bound=BelievedConfig)


def annotator_weights(label: FinishedStage, config: PreferenceConfig, pairs: Iterable[Preference]) -> dict[str, float]:
    """The weight of each annotator's labels, 1 on average over the labels in `pairs`; empty where all count alike.

    Annotators of whom nothing is known count as the average of those of whom something is.
    """
    if not isinstance(config, BelievedConfig) or config.annotator_weights == "equal":
        return {}
    measured = label.report(LabelSources).reliability or {}
    annotator_of = {pair.label_id: pair.annotator for pair in pairs}
    key = f"{config.stage}.annotator_weights"
    known = [measured[name].right for name in annotator_of.values() if name in measured]
    if not known:
        raise DataError(
            f"{key}: reliability is not measured: no two labels are of the same pair, and nobody answered hidden "
            "checks; leave it at equal"
        )
    average = sum(known) / len(known)
    right = {name: measured[name].right if name in measured else average for name in set(annotator_of.values())}
    weights = {name: label_weight(share) for name, share in sorted(right.items())}
    mean = sum(weights[name] for name in annotator_of.values()) / len(annotator_of)
    if not mean:
        raise DataError(f"{key}: no annotator is right more often than chance ({_listed(right)})")
    say(f"{'annotators':<12} right, and weight of a label: {_listed(right, {k: w / mean for k, w in weights.items()})}")
    return {name: weight / mean for name, weight in weights.items()}


def _listed(right: dict[str, float], weights: dict[str, float] | None = None, most: int = 8) -> str:
    rest = f" and {len(right) - most} more" if len(right) > most else ""
    shares = sorted(right.items(), key=lambda one: (one[1], one[0]))[:most]
    return ", ".join(f"{name} {q:.0%}" + (f", {weights[name]:.2f}" if weights else "") for name, q in shares) + rest


def resolve_smoothing(config: C, label: FinishedStage) -> C:
    """The config with a number in place of `label_smoothing: measured`, and the reason printed."""
    if config.label_smoothing != "measured":
        return config
    agreement = label.report(LabelSources).agreement
    key = f"{config.stage}.label_smoothing"
    if agreement is None:
        raise DataError(f"{key}: measured: no two annotators put the same pair in a strict order; give a number")
    wrong = 1 - best_accuracy(agreement)
    if wrong >= MOST_WRONG:
        raise DataError(f"{key}: measured: annotators agree in {agreement:.0%}, no more than by chance; give a number")
    say(f"{'smoothing':<12} {wrong:.3f}: annotators agree in {agreement:.1%}, if each is wrong in {wrong:.1%}")
    return config.model_copy(update={"label_smoothing": wrong})


MOST_WRONG = 0.49
"""Share of wrong labels from which nothing is left to learn."""
