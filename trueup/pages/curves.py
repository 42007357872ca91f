"""Training curves, each with a sentence on how to read it and notes on what it does.

The notes come from `trueup.pages.diagnoses`. This module says which curves are drawn, in which order, from which rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from trueup import runs
from trueup.data.records import read_jsonl
from trueup.pages import diagnoses, plots
from trueup.pages.diagnoses import (
    ALIKE,
    APPROX_KL,
    CLIPPED,
    CUT,
    ENDS,
    ENTROPY,
    EXPLAINED,
    KL,
    KL_COEF,
    LENGTH,
    PTX,
    REWARD,
    VALUE_CLIPPED,
    VALUE_LOSS,
    Note,
    Notice,
)
from trueup.pages.trends import Row, points

# ---- How to read them -------------------------------------------------------------------------------------------


def _reads_loss(rows: Sequence[Row]) -> str:
    if points(rows, "rewards/margins")[1]:
        first = points(rows, "loss")[1][0]
        start = "ln 2 = 0.693" if abs(first - math.log(2)) < 0.01 else f"{first:.3f}"
        return f"Starts at {start}, where the policy is its reference; lower is a larger margin on the labels."
    if points(rows, "margin", "accuracy")[1]:
        return (
            "Starts near ln 2 = 0.693, a coin toss, or above it where grades ask for a margin or answers are tied; "
            "lower is more confidence in the labelled order."
        )
    return "Nats per token of the answers; lower is a closer fit to the demonstrations in training."


def _reads_kl(rows: Sequence[Row]) -> str:
    if points(rows, "rewards/margins")[1]:
        return "KTO's estimate, nats per answer: how much likelier answers to other prompts became; at least 0."
    moved = "How far answers have moved from the reference's, by their own log-probabilities"
    whole = points(rows, KL[0])[1]
    return f"{moved}: {'a mean over whole answers' if whole else 'a mean over tokens'}."


def _reads_clipped(rows: Sequence[Row]) -> str:
    return (
        "Policy: tokens (with RLOO whole answers) whose ratio to the policy that sampled them has left the clip, so "
        "that they move it no further. 0 in the first step after each rollout, where the two are the same."
        + (" Critic: the same for its values." if points(rows, VALUE_CLIPPED)[1] else "")
    )


def _moves(key: str) -> Callable[[Sequence[Row]], bool]:
    """Whether a metric changes by more than a hundredth: a constant needs no picture."""

    def moves(rows: Sequence[Row]) -> bool:
        _, values = points(rows, key)
        return bool(values) and max(values) > 1.01 * min(values)

    return moves


def _without(*keys: str) -> Callable[[Sequence[Row]], bool]:
    return lambda rows: not points(rows, *keys)[1]


@dataclass(frozen=True)
class Chart:
    """A picture of some metrics."""

    title: str
    lines: tuple[tuple[str, tuple[str, ...], str], ...]
    """(name, keys of which the first in the rows is drawn, CSS class of its colour)."""
    how: str | Callable[[Sequence[Row]], str]
    """How to read it."""
    notices: tuple[Notice, ...] = ()
    when: Callable[[Sequence[Row]], bool] = bool
    """Whether it has something to show; by default if there are rows."""


CHARTS = (
    Chart(
        "loss",
        (("training", ("loss",), "s-reference"), ("held out", ("eval_loss",), "s-aligned")),
        _reads_loss,
        (diagnoses.loss_turned, diagnoses.loss_stands_still, diagnoses.heldout_turned, diagnoses.heldout_fell),
        when=_without(*REWARD),
    ),
    Chart(
        "implicit rewards",
        (("chosen", ("rewards/chosen",), "s-aligned"), ("rejected", ("rewards/rejected",), "s-rejected")),
        "Beta times the log-probability that each answer gained against the reference; 0 is where it started.",
        (diagnoses.chosen_fell, diagnoses.chosen_rose, diagnoses.both_rose),
    ),
    Chart(
        "reward margin",
        (("margin", ("rewards/margins", "margin"), "s-aligned"),),
        "Chosen minus rejected: how strongly the labelled order is held. It says nothing about other pairs.",
        (diagnoses.margin_stands_still, diagnoses.margin_outgrows_order),
    ),
    Chart(
        "share of pairs ordered rightly",
        (("accuracy", ("rewards/accuracies", "accuracy"), "s-aligned"),),
        "Share within a batch; one half is chance. Small batches make it jump.",
        (diagnoses.order_saturated, diagnoses.order_is_chance),
    ),
    Chart(
        "loss on prompts kept for the choice",
        (("kept prompts", ("kept_loss",), "s-aligned"),),
        "At the best temperature; step 0 is the probe at the start. The step where it is smallest is kept: if that is "
        "step 0, training is undone.",
    ),
    Chart(
        "log-probability, nats",
        (("chosen", ("logps/chosen",), "s-aligned"), ("rejected", ("logps/rejected",), "s-rejected")),
        "Sum over a whole answer, so it also moves with the lengths in a batch: compare the lines, not the steps.",
    ),
    Chart(
        "reward",
        (("reward", REWARD, "s-aligned"), ("less the price of KL", ("objective/rlhf_reward",), "s-reference")),
        "Mean over answers sampled in training, by the reward in use. It should rise; that alone is no evidence.",
        (diagnoses.reward_rose_with_length,),
    ),
    Chart(
        "spread of the reward model's heads",
        (
            ("in training", ("rewards/spread",), "s-aligned"),
            ("prompts kept to choose by", ("eval/spread",), "s-reference"),
        ),
        "Standard deviation over the heads, in those of held-out scores. Where it grows, the policy writes what the "
        "labels of the reward model did not settle; align.reward_caution takes it from the reward.",
    ),
    Chart(
        "length of answers, tokens",
        (("tokens", LENGTH, "s-aligned"),),
        "Mean over answers sampled in training. It should stay unless the preference asks for another length.",
    ),
    Chart("KL to the reference, nats", (("KL", KL, "s-aligned"),), _reads_kl, (diagnoses.kl_grows,)),
    Chart(
        "KL coefficient",
        (("price of a nat", (KL_COEF,), "s-reference"),),
        "Price of a nat of KL, in units of reward: it rises while KL is above kl_target and falls while it is below.",
        (diagnoses.kl_coef_still_moves,),
        when=_moves(KL_COEF),
    ),
    Chart(
        "share of answers that end by themselves",
        (("ends", (ENDS,), "s-aligned"),),
        "Among answers sampled in training; the others were cut at max_new_tokens. It should not fall.",
        (diagnoses.ends_less,),
    ),
    Chart(
        "share of answers cut at the limit",
        (("cut", (CUT,), "s-aligned"),),
        "Among answers sampled in training; the others end by themselves. It should not rise.",
        (diagnoses.ends_less,),
        when=_without(ENDS),
    ),
    Chart(
        "entropy, nats per token",
        (("entropy", ENTROPY, "s-aligned"),),
        "How open the next token is, on average: 0 is one possible continuation.",
        (diagnoses.entropy_collapsed,),
    ),
    Chart(
        "explained variance of the critic",
        (("explained", (EXPLAINED,), "s-aligned"),),
        "How much of the returns the critic foresaw: 1 all, 0 no more than their mean, below 0 it misleads.",
        (diagnoses.critic_misleads,),
    ),
    Chart(
        "value loss",
        (("critic", (VALUE_LOSS,), "s-reference"),),
        "Half the squared error of the critic, in units of reward squared. It falls as the critic learns; explained "
        "variance tells how good the critic is.",
        (diagnoses.value_loss_grows,),
    ),
    Chart(
        "share of tokens held by the clip",
        (("policy", CLIPPED, "s-aligned"), ("critic", (VALUE_CLIPPED,), "s-reference")),
        _reads_clipped,
        (diagnoses.clip_holds_much, diagnoses.clip_holds_the_critic),
    ),
    Chart(
        "distance from the sampling policy, nats",
        (("approximate KL", (APPROX_KL,), "s-aligned"),),
        "Half the mean squared log-ratio of the policy to the one that sampled the rollout, per token. 0 in the first "
        "step after each rollout; what the passes over it add should stay in the hundredths.",
        (diagnoses.steps_go_far,),
    ),
    Chart(
        "share of prompts whose answers are paid alike",
        (("paid alike", (ALIKE,), "s-reference"),),
        "Each answer is compared with the others to its prompt; if all get the same reward, there is nothing to learn.",
        (diagnoses.siblings_paid_alike,),
        when=_without(EXPLAINED),
    ),
    Chart(
        "loss on demonstrations, nats per token",
        (("demonstrations", (PTX,), "s-reference"),),
        "Loss on the demonstrations that ptx_coef mixes in against forgetting. It should not rise.",
        (diagnoses.demonstrations_forgotten,),
    ),
    Chart(
        "surrogate loss",
        (("policy", ("loss/policy_avg", "loss"), "s-reference"),),
        "It consists of advantages, which are around 0 in every rollout, so it shows no progress. Read the reward.",
        when=lambda rows: bool(points(rows, *REWARD)[1]),
    ),
    Chart(
        "gradient norm",
        (("norm", ("grad_norm",), "s-reference"),),
        "Before clipping. Its level depends on the model; jumps point at odd batches.",
        (diagnoses.gradient_spikes,),
    ),
)
"""The charts of a stage's metrics, in this order; a chart without logged metrics is left out."""


@dataclass(frozen=True)
class Curve:
    """A chart as a page shows it."""

    title: str
    series: list[plots.Series]
    svg: Markup
    how: str
    notes: list[Note]


def training_curves(rows: Sequence[Row]) -> list[Curve]:
    """Every chart that these rows of a metrics.jsonl can fill, with its notes."""
    curves = []
    for chart in CHARTS:
        if not chart.when(rows):
            continue
        series = []
        for name, keys, style in chart.lines:
            x, y = points(rows, *keys)
            if len(y) > 1:
                series.append(plots.Series(name, style, y, x))
        if series:
            notes = [note for notice in chart.notices if (note := notice(rows)) is not None]
            how = chart.how if isinstance(chart.how, str) else chart.how(rows)
            curves.append(Curve(chart.title, series, plots.line_chart(series, "step", chart.title), how, notes))
    return curves


def stage_curves(run_dir: Path, stage: str) -> list[Curve]:
    """The curves of a stage on disk; none for a stage that does not train."""
    path = runs.stage_dir(run_dir, stage) / runs.METRICS
    return training_curves([row for _, row in read_jsonl(path)]) if path.exists() else []
