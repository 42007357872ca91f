"""Check that what a stage learns from labels is asked of people."""

from __future__ import annotations

from typing import Any

from trueup.data.criteria import OVERALL
from trueup.training.config import BelievedConfig, PreferenceConfig


def check_signals(config: PreferenceConfig, label: Any, problems: list[str]) -> None:
    """Add a problem for each key of `config` that no label can obey, so that nobody labels in vain.

    label  the config of the label stage. What a file or a program says is known only when the stage runs
    """
    sources = set(label.sources)
    if not sources & {"import"} and (unknown := sorted(config.criteria_weights.keys() - {*label.criteria, OVERALL})):
        asked = ", ".join(label.criteria) or "none"
        problems.append(
            f"{config.stage}.criteria_weights: nobody is asked for {', '.join(unknown)} (label.criteria: {asked})"
        )
    if not isinstance(config, BelievedConfig) or sources != {"human"} or label.labels_per_pair > 1:
        return
    once = "each pair is labelled once (label.labels_per_pair: 1)"
    if config.label_smoothing == "measured":
        problems.append(f"{config.stage}.label_smoothing: measured: {once}, so that nobody can disagree")
    if config.annotator_weights == "reliability" and not (label.repeat_share or label.gold):
        problems.append(
            f"{config.stage}.annotator_weights: reliability: {once}, and neither label.repeat_share nor label.gold "
            "measures annotators"
        )
