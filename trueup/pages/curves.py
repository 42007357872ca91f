"""Training curves, each with what to look for: a sentence on how to read it, and what this one does.

A note stands only beside a curve that does what the note says; `normal` is what training of this kind looks like,
`watch` is worth a look at the answers. Everything is read from the rows of a stage's metrics.jsonl, under the names
that TRL and lm-human-preferences give their metrics. A change counts when it is larger than its noise, so that notes do
not come and go with the batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from trueup import runs
from trueup.data.records import read_jsonl
from trueup.pages import plots

Row = dict[str, Any]

ENOUGH_STEPS = 10
"""Below so many steps nothing is said of where a curve goes."""
SURE, STILL = 3.0, 2.0
"""Standard errors from which a change is one, and below which there is none to see; in between nothing is said."""
SATURATED = 0.99
"""Share of pairs ordered rightly from which there is nothing left to order."""
MUCH_CLIPPED = 0.3
"""Share of tokens that the clip holds above which passes over a rollout are mostly without effect."""
MISLEADS = -0.05
"""Explained variance below which a critic is worse than none; one that has learnt nothing yet is around 0."""
FAR = 0.1
"""Mean of half the squared log-ratio, in nats, above which a rollout is no longer one of the policy's own."""


# ---- What a curve does ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trend:
    """Where a metric begins and ends, and whether it moved by more than chance."""

    first: float
    last: float
    """Means of the first and the last tenth, of three steps at least."""
    z: float
    """Change from the first third of the steps to the last, in its standard errors: thirds see through more noise."""

    @property
    def rose(self) -> bool:
        return self.z > SURE

    @property
    def fell(self) -> bool:
        return self.z < -SURE

    @property
    def still(self) -> bool:
        return abs(self.z) < STILL


def points(rows: Sequence[Row], *keys: str) -> tuple[list[float], list[float]]:
    """Steps and values of the first of these metrics that the rows have; what is not a finite number is left out."""
    for key in keys:
        found = [(row["step"], row[key]) for row in rows if "step" in row and _is_number(row.get(key))]
        if found:
            return [float(step) for step, _ in found], [float(value) for _, value in found]
    return [], []


def trend(values: Sequence[float]) -> Trend | None:
    """None with too few steps to tell."""
    if len(values) < ENOUGH_STEPS:
        return None
    third, tenth = len(values) // 3, max(3, len(values) // 10)
    before, after = np.asarray(values[:third]), np.asarray(values[-third:])
    change = float(after.mean() - before.mean())
    noise = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / third)
    tiny = 1e-9 * max(1.0, float(np.abs(values).max()))  # what rounding makes of a constant is no change
    z = change / max(noise, tiny) if abs(change) > tiny else 0.0
    return Trend(float(np.mean(values[:tenth])), float(np.mean(values[-tenth:])), z)


def rises_at_the_end(values: Sequence[float]) -> tuple[int, float, float] | None:
    """(index of the lowest mean, that mean, the last mean) if the curve turned upwards in its first four fifths and
    its end is above its low by more than three standard errors of a mean over a tenth of the steps."""
    if len(values) < 2 * ENOUGH_STEPS:
        return None
    window = max(3, len(values) // 10)
    smooth = plots.moving_mean(values, window)
    inner = smooth[window : len(smooth) - window // 2]  # at both ends a mean is over fewer
    low = int(np.argmin(inner)) + window
    last = float(np.mean(values[-window:]))
    noise = float(np.std(np.asarray(values) - np.asarray(smooth))) * math.sqrt(2 / window)
    if low < 0.8 * len(values) and last - smooth[low] > max(3 * noise, 1e-9):
        return low, smooth[low], last
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---- What is said of it -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """What this curve does, and what that means."""

    level: Literal["normal", "watch"]
    text: str
    source: str = ""
    """Where a claim that is not plain from the curve comes from."""


Notice = Callable[[Sequence[Row]], Note | None]

_DISPLACEMENT = "Razin et al. 2024, arXiv:2410.08847; Pal et al. 2024, arXiv:2402.13228"


def loss_turned(rows: Sequence[Row]) -> Note | None:
    steps, values = points(rows, "loss")
    turned = rises_at_the_end(values)
    if turned is None:
        return None
    at, low, last = turned
    return Note(
        "watch",
        f"It rises at the end, from {_short(low)} near step {steps[at]:.0f} to {_short(last)}: the steps are too "
        "large, or the last batches are harder. A lower learning rate, or fewer steps, tells which.",
    )


def loss_stands_still(rows: Sequence[Row]) -> Note | None:
    found = trend(points(rows, "loss")[1])
    if found is None or not found.still or heldout_fell(rows) is not None:
        return None
    return Note(
        "watch",
        f"It does not fall beyond its noise ({_short(found.first)} at first, {_short(found.last)} at the end): "
        "nothing that this loss shows was learnt. Look at the learning rate, the number of steps, and whether answers "
        "are labels.",
    )


def heldout_turned(rows: Sequence[Row]) -> Note | None:
    steps, values = points(rows, "eval_loss")
    found = trend(points(rows, "loss")[1])
    if len(values) < 3 or found is None or not found.fell:
        return None
    low = int(np.argmin(values))
    if values[-1] <= 1.01 * values[low]:
        return None
    return Note(
        "watch",
        f"The held-out loss is lowest at step {steps[low]:.0f} ({_short(values[low])}) and {_short(values[-1])} at the "
        "end, while the training loss falls: from there on the data is learnt by heart. Stop earlier.",
    )


def heldout_fell(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, "eval_loss")
    if len(values) < 2 or values[-1] >= values[0] or values[-1] > 1.01 * min(values):
        return None
    return Note(
        "normal",
        f"The held-out loss falls with it, from {_short(values[0])} to {_short(values[-1])}: no over-fit to see.",
    )


def chosen_fell(rows: Sequence[Row]) -> Note | None:
    """The chosen answers' implicit reward is taken, which is against the reference: their plain log-probability goes
    up and down with the lengths in a batch."""
    chosen = trend(points(rows, "rewards/chosen", "logps/chosen")[1])
    margin = trend(points(rows, "rewards/margins")[1])
    if chosen is None or margin is None or not (chosen.fell and margin.rose):
        return None
    return Note(
        "normal",
        "The chosen answers become less probable than under the SFT policy, and the margin still grows, since the "
        "rejected ones fall faster. DPO asks for the difference only, so this is common and no fault of itself. Worry "
        "when the fall goes on to tens of nats, or when answers break off, repeat themselves or change the subject: "
        "probability then goes to answers that nobody labelled. Remedies: a higher beta, fewer steps.",
        _DISPLACEMENT,
    )


def chosen_rose(rows: Sequence[Row]) -> Note | None:
    chosen, rejected = (trend(points(rows, f"rewards/{name}")[1]) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or not chosen.rose or rejected.rose:
        return None
    return Note("normal", "The chosen answers rise and the rejected ones do not: the plainest way to a margin.")


def both_rose(rows: Sequence[Row]) -> Note | None:
    chosen, rejected = (trend(points(rows, f"rewards/{name}")[1]) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or not (chosen.rose and rejected.rose):
        return None
    return Note(
        "normal",
        "Both rise: chosen and rejected answers have much in common (form, length, subject), and that is learnt with "
        "them. Only the distance between the lines is the preference.",
    )


def margin_stands_still(rows: Sequence[Row]) -> Note | None:
    found = trend(points(rows, "rewards/margins", "margin")[1])
    if found is None or not found.still:
        return None
    return Note(
        "watch",
        f"It does not leave its noise ({_short(found.first)} at first, {_short(found.last)} at the end): the labels "
        "were not learnt. Too few steps, too low a learning rate, or labels that contradict each other.",
    )


def margin_outgrows_order(rows: Sequence[Row]) -> Note | None:
    _, margins = points(rows, "rewards/margins", "margin")
    half = trend(margins[len(margins) // 2 :])
    if half is None or not half.rose or saturated_at(rows) is None:
        return None
    return Note(
        "watch",
        "It grows on although the pairs are ordered already: from there on confidence is learnt, not order. Where each "
        "pair is labelled once, nothing in the loss bounds it.",
        "Azar et al. 2023, arXiv:2310.12036",
    )


def order_saturated(rows: Sequence[Row]) -> Note | None:
    steps, _ = points(rows, "rewards/accuracies", "accuracy")
    at = saturated_at(rows)
    if at is None:
        return None
    return Note(
        "watch",
        f"Nearly all pairs of a batch are ordered rightly from step {steps[at]:.0f} of {steps[-1]:.0f} on: either "
        "the pairs are easy, or they are learnt by heart. Held-out accuracy and the win rate tell which; this curve "
        "cannot.",
    )


def order_is_chance(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, "rewards/accuracies", "accuracy")
    found = trend(values)
    if found is None or not found.still or found.last > 0.6:
        return None
    return Note("watch", f"It ends at {100 * found.last:.0f} %, hardly above a coin: the order was not learnt.")


def saturated_at(rows: Sequence[Row]) -> int | None:
    """The point, in the first half of the steps, from which on the mean share ordered rightly is SATURATED."""
    _, values = points(rows, "rewards/accuracies", "accuracy")
    for at in range(len(values) // 2 + 1 if len(values) >= ENOUGH_STEPS else 0):
        if float(np.mean(values[at:])) >= SATURATED and values[at] >= SATURATED:
            return at
    return None


def reward_rose_with_length(rows: Sequence[Row]) -> Note | None:
    reward = trend(points(rows, *_REWARD)[1])
    length = trend(points(rows, *_LENGTH)[1])
    if reward is None or length is None or not (reward.rose and length.rose):
        return None
    return Note(
        "watch",
        f"Reward rises, and so do answers, from {length.first:.0f} to {length.last:.0f} tokens: much of a reward can "
        "be length alone. Look at the win rate at equal length before believing it.",
        "Singhal et al. 2023, arXiv:2310.03716",
    )


def kl_grows(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, *_KL)
    half = trend(values[len(values) // 2 :])
    if half is None or not half.rose:
        return None
    reward = trend(points(rows, *_REWARD)[1][len(values) // 2 :])
    if reward is not None and not reward.rose:
        return Note(
            "watch",
            f"It grows on, to {_short(half.last)} nats, while the reward does not: distance that buys nothing.",
        )
    return Note(
        "normal",
        f"It grows to the end, to {_short(half.last)} nats: reward is still being bought with distance. What a judge "
        "prefers rises with the distance at first and falls later, while the reward that is trained on rises on.",
        "Gao et al. 2022, arXiv:2210.10760",
    )


def kl_coef_still_moves(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, _KL_COEF)
    half = trend(values[len(values) // 2 :])
    if half is None or half.still:
        return None
    if half.rose:
        return Note(
            "watch",
            f"It still rises at the end, to {_short(half.last)}: KL stays above kl_target although its price grows. A "
            "lower learning rate, or a shorter kl_horizon, brings them together.",
        )
    return Note(
        "normal",
        f"It still falls at the end, to {_short(half.last)}: KL is below kl_target, so there is room to move further.",
    )


def value_loss_grows(rows: Sequence[Row]) -> Note | None:
    found = trend(points(rows, _VALUE_LOSS)[1])
    if found is None or not found.rose:
        return None
    return Note(
        "watch",
        f"It rises, from {_short(found.first)} to {_short(found.last)}: the critic falls behind the policy, or rewards "
        "spread wider. Explained variance tells which: it does not change with the scale of rewards.",
    )


def critic_misleads(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, _EXPLAINED)
    if len(values) < 3 or max(values[-3:]) > MISLEADS:
        return None
    return Note(
        "watch",
        f"Below 0 at the end ({_short(values[-1])}): what the critic says is further from the returns than their mean "
        "is, so it adds noise to the advantages. More critic_warmup_rollouts, or a higher critic_learning_rate.",
    )


def clip_holds_much(rows: Sequence[Row]) -> Note | None:
    last = _at_the_end(points(rows, *_CLIPPED)[1])
    if last is None or last <= MUCH_CLIPPED:
        return None
    return Note(
        "watch",
        f"{100 * last:.0f} % of what the policy learns from, at the end: much of each pass over a rollout moves "
        "nothing any more. A lower learning rate, or fewer passes.",
    )


def clip_holds_the_critic(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, _VALUE_CLIPPED)
    most = float(np.mean(values)) if len(values) >= ENOUGH_STEPS else 0.0
    if most <= MUCH_CLIPPED:
        return None
    return Note(
        "watch",
        f"{100 * most:.0f} % of the critic's values on average: a rollout may move them by cliprange_value alone, in "
        "units of reward, and rewards are larger than that. Lower weights in rewards bring them to a scale of 1, or a "
        "higher cliprange_value lets the critic follow.",
    )


def steps_go_far(rows: Sequence[Row]) -> Note | None:
    steps, values = points(rows, _APPROX_KL)
    far = [step for step, value in zip(steps, values, strict=True) if value > FAR]
    if not far:
        return None
    times = "once" if len(far) == 1 else f"{len(far)} times"
    return Note(
        "watch",
        f"Above {FAR} {times}, first at step {far[0]:.0f}: by then the policy is another one than the one whose "
        "answers it learns from. A lower learning rate, or fewer passes.",
    )


def ends_less(rows: Sequence[Row]) -> Note | None:
    ends, cut = trend(points(rows, _ENDS)[1]), trend(points(rows, _CUT)[1])
    found = ends or cut
    if found is None or not (found.fell if ends else found.rose) or abs(found.last - found.first) < 0.05:
        return None
    return Note(
        "watch",
        f"{100 * found.first:.0f} % at first, {100 * found.last:.0f} % at the end: more answers run into "
        "max_new_tokens. A higher missing_eos_penalty, or more room, if long answers are wanted.",
    )


def siblings_paid_alike(rows: Sequence[Row]) -> Note | None:
    last = _at_the_end(points(rows, _ALIKE)[1])
    if last is None or last <= 0.5:
        return None
    return Note(
        "watch",
        f"{100 * last:.0f} % of prompts at the end teach nothing: all of their answers are paid alike. More answers to "
        "each (num_generations), a higher temperature, or a reward with finer steps.",
        "Yu et al. 2025, arXiv:2503.14476",
    )


def demonstrations_forgotten(rows: Sequence[Row]) -> Note | None:
    found = trend(points(rows, _PTX)[1])
    if found is None or not found.rose:
        return None
    return Note(
        "watch",
        f"It rises, from {_short(found.first)} to {_short(found.last)}: demonstrations are being forgotten in spite of "
        "the mix. A higher ptx_coef.",
    )


def entropy_collapsed(rows: Sequence[Row]) -> Note | None:
    found = trend(points(rows, *_ENTROPY)[1])
    if found is None or not found.fell or found.last > 0.5 * found.first:
        return None
    return Note(
        "watch",
        f"It falls by more than half, from {_short(found.first)} to {_short(found.last)} nats: answers grow alike. "
        "Look at distinct word pairs and at the answers themselves.",
    )


def gradient_spikes(rows: Sequence[Row]) -> Note | None:
    steps, values = points(rows, "grad_norm")
    if len(values) < ENOUGH_STEPS:
        return None
    usual = float(np.median(values))
    spikes = [step for step, value in zip(steps, values, strict=True) if value > 10 * usual]
    if not spikes or usual <= 0:
        return None
    times = "once" if len(spikes) == 1 else f"{len(spikes)} times"
    return Note(
        "watch",
        f"It jumps above ten times its median {times}, first at step {spikes[0]:.0f}: look at the rows of that batch. "
        "Clipping (max_grad_norm) bounds what one batch can do.",
    )


def _at_the_end(values: Sequence[float]) -> float | None:
    """Mean of the last tenth, of three steps at least; None with too few to tell."""
    return float(np.mean(values[-max(3, len(values) // 10) :])) if len(values) >= ENOUGH_STEPS else None


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


# ---- The charts -------------------------------------------------------------------------------------------------

_REWARD = ("objective/scores", "reward")
_LENGTH = ("objective/length", "completions/mean_length")
_KL = ("objective/kl", "kl")
_ENTROPY = ("objective/entropy", "entropy")
_KL_COEF, _VALUE_LOSS, _EXPLAINED = "objective/kl_coef", "loss/value_avg", "val/explained_variance"
_CLIPPED, _VALUE_CLIPPED = ("policy/clipfrac_avg", "clip_ratio/region_mean"), "val/clipfrac_avg"
_APPROX_KL = "policy/approxkl_avg"
_ENDS, _CUT, _ALIKE, _PTX = "val/eos_rate", "completions/clipped_ratio", "frac_reward_zero_std", "loss/ptx_avg"


def _reads_loss(rows: Sequence[Row]) -> str:
    if points(rows, "rewards/margins")[1]:
        return "Starts at ln 2 = 0.693, where the policy is its reference; lower is a larger margin on the labels."
    if points(rows, "margin", "accuracy")[1]:
        return "Starts near ln 2 = 0.693, a coin toss; lower is more confidence in the labelled order."
    return "Nats per token of the answers; lower is a closer fit to the demonstrations, of those trained on."


def _reads_kl(rows: Sequence[Row]) -> str:
    moved = "How far answers have moved from the SFT policy's, by their own log-probabilities"
    whole = points(rows, _KL[0])[1]
    return f"{moved}: {'a mean over whole answers' if whole else 'a mean over tokens'}."


def _reads_clipped(rows: Sequence[Row]) -> str:
    return (
        "Of the policy: tokens (with RLOO whole answers) whose ratio to the policy that sampled them has left the "
        "clip, so that they move it no further. 0 in the first step after each rollout, where the two are one."
        + (" Of the critic: the same of its values." if points(rows, _VALUE_CLIPPED)[1] else "")
    )


def _moves(key: str) -> Callable[[Sequence[Row]], bool]:
    """Whether it changes by more than a hundredth: a constant needs no picture."""

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
    """(name, keys of which the first found is drawn, CSS class of its colour)."""
    how: str | Callable[[Sequence[Row]], str]
    """How to read it."""
    notices: tuple[Notice, ...] = ()
    when: Callable[[Sequence[Row]], bool] = bool
    """Whether it has something to show; by default wherever there are rows."""


CHARTS = (
    Chart(
        "loss",
        (("training", ("loss",), "s-reference"), ("held out", ("eval_loss",), "s-aligned")),
        _reads_loss,
        (loss_turned, loss_stands_still, heldout_turned, heldout_fell),
        when=_without(*_REWARD),
    ),
    Chart(
        "implicit rewards",
        (("chosen", ("rewards/chosen",), "s-aligned"), ("rejected", ("rewards/rejected",), "s-rejected")),
        "Beta times the log-probability that each answer gained against the reference; 0 is where it started.",
        (chosen_fell, chosen_rose, both_rose),
    ),
    Chart(
        "reward margin",
        (("margin", ("rewards/margins", "margin"), "s-aligned"),),
        "Chosen minus rejected: how strongly the labelled order is held. It says nothing of pairs not trained on.",
        (margin_stands_still, margin_outgrows_order),
    ),
    Chart(
        "share of pairs ordered rightly",
        (("accuracy", ("rewards/accuracies", "accuracy"), "s-aligned"),),
        "Of the pairs in a batch; one half is a coin. Small batches make it jump.",
        (order_saturated, order_is_chance),
    ),
    Chart(
        "log-probability, nats",
        (("chosen", ("logps/chosen",), "s-aligned"), ("rejected", ("logps/rejected",), "s-rejected")),
        "Of whole answers, so it also moves with the lengths in a batch: compare the lines, not the steps.",
    ),
    Chart(
        "reward",
        (("reward", _REWARD, "s-aligned"), ("less the price of KL", ("objective/rlhf_reward",), "s-reference")),
        "Of answers sampled in training, by what is trained on. It should rise; that it does is no evidence.",
        (reward_rose_with_length,),
    ),
    Chart(
        "length of answers, tokens",
        (("tokens", _LENGTH, "s-aligned"),),
        "Of answers sampled in training. It should stay where the preference does not ask for another.",
    ),
    Chart(
        "KL to the SFT policy, nats",
        (("KL", _KL, "s-aligned"),),
        _reads_kl,
        (kl_grows,),
    ),
    Chart(
        "KL coefficient",
        (("price of a nat", (_KL_COEF,), "s-reference"),),
        "Price of a nat of KL, in units of reward: it rises while KL is above kl_target and falls while it is below.",
        (kl_coef_still_moves,),
        when=_moves(_KL_COEF),
    ),
    Chart(
        "share of answers that end by themselves",
        (("ends", (_ENDS,), "s-aligned"),),
        "Of answers sampled in training; the others were cut at max_new_tokens. It should not fall.",
        (ends_less,),
    ),
    Chart(
        "share of answers cut at the limit",
        (("cut", (_CUT,), "s-aligned"),),
        "Of answers sampled in training; the others end by themselves. It should not rise.",
        (ends_less,),
        when=_without(_ENDS),
    ),
    Chart(
        "entropy, nats per token",
        (("entropy", _ENTROPY, "s-aligned"),),
        "How open the next token is, on average: 0 is one possible continuation.",
        (entropy_collapsed,),
    ),
    Chart(
        "explained variance of the critic",
        (("explained", (_EXPLAINED,), "s-aligned"),),
        "How much of the returns the critic foresaw: 1 all, 0 no more than their mean, below 0 it misleads.",
        (critic_misleads,),
    ),
    Chart(
        "value loss",
        (("critic", (_VALUE_LOSS,), "s-reference"),),
        "Half the squared error of the critic, in units of reward squared. It falls as the critic learns; what it is "
        "worth, explained variance tells.",
        (value_loss_grows,),
    ),
    Chart(
        "share of tokens held by the clip",
        (("policy", _CLIPPED, "s-aligned"), ("critic", (_VALUE_CLIPPED,), "s-reference")),
        _reads_clipped,
        (clip_holds_much, clip_holds_the_critic),
    ),
    Chart(
        "distance from the sampling policy, nats",
        (("approximate KL", (_APPROX_KL,), "s-aligned"),),
        "Half the mean squared log-ratio of the policy to the one that sampled the rollout, per token. 0 in the first "
        "step after each rollout; what the passes over it add should stay in the hundredths.",
        (steps_go_far,),
    ),
    Chart(
        "share of prompts whose answers are paid alike",
        (("paid alike", (_ALIKE,), "s-reference"),),
        "Each answer is held against its siblings; where all are paid the same, there is nothing to learn.",
        (siblings_paid_alike,),
        when=_without(_EXPLAINED),
    ),
    Chart(
        "loss on demonstrations, nats per token",
        (("demonstrations", (_PTX,), "s-reference"),),
        "Of the demonstrations that ptx_coef mixes in against forgetting. It should not rise.",
        (demonstrations_forgotten,),
    ),
    Chart(
        "surrogate loss",
        (("policy", ("loss/policy_avg", "loss"), "s-reference"),),
        "Made of advantages, which are around 0 in every rollout, so it shows no progress. Read the reward.",
        when=lambda rows: bool(points(rows, *_REWARD)[1]),
    ),
    Chart(
        "gradient norm",
        (("norm", ("grad_norm",), "s-reference"),),
        "Before clipping. Its level depends on the model; jumps point at odd batches.",
        (gradient_spikes,),
    ),
)
"""What is drawn of a stage's metrics, in this order; a chart of which nothing was logged is left out."""


@dataclass(frozen=True)
class Curve:
    """A chart as a page shows it."""

    title: str
    series: list[plots.Series]
    svg: Markup
    how: str
    notes: list[Note]


def training_curves(rows: Sequence[Row]) -> list[Curve]:
    """Every chart that these rows of a metrics.jsonl have something for, with what is to be said of it."""
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
    """Those of a stage on disk; none for one that does not train."""
    path = runs.stage_dir(run_dir, stage) / runs.METRICS
    return training_curves([row for _, row in read_jsonl(path)]) if path.exists() else []
