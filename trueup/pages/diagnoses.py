"""Diagnoses of a training: one threshold for each fault, shared by pages and PPO's guards, and notes on curves.

PPO's guards (`rlhf.align.guards`) check after each rollout, a page after the last step, both by the functions of the
first part. So a page agrees with the guard. A note appears only beside a curve that does what the note says: `normal`
is usual for this kind of training, `watch` is worth a look at the answers. Notes read the rows of a stage's
metrics.jsonl, under the metric names of TRL and lm-human-preferences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trueup.pages.trends import ENOUGH_STEPS, Row, at_the_end, points, rises_at_the_end, rose, trend
from trueup.pages.wording import short

SATURATED = 0.99
"""Share of rightly ordered pairs from which there is nothing more to learn."""
MUCH_CLIPPED = 0.3
"""Share of clipped tokens above which further passes over a rollout have little effect."""
FAR = 0.1
"""Mean of half the squared log-ratio, in nats, above which a rollout no longer comes from the policy in training."""

# ---- What guards and pages both look for ------------------------------------------------------------------------
# A guard can end a training, so chance and healthy trainings must seldom reach a threshold.

ENOUGH = 5
"""Least number of rollouts, or steps, for a diagnosis."""
LASTING = 3
"""Rollouts in a row in which a share must be off: with few answers, one rollout alone is off by chance."""
COLLAPSED = 0.3
"""Entropy as a part of its first value, when all answers become one. Many good trainings end at half of it."""
ENDS_FEWER = 0.2
"""Fall in the share of answers that end by themselves; chance moves it by less in a rollout of few answers."""
MISLEADS = -0.05
"""Explained variance below which a critic is worse than none; one that has learnt nothing yet is around 0."""
FOLLOWS, LONGER = 0.8, 1.2
"""Correlation of reward with length, and growth of the answers, from which length explains much of the reward."""
_STRETCHES = 20
"""Number of means by which a longer series is correlated: the noise of single steps would hide the rest."""


@dataclass(frozen=True)
class Lengthening:
    """Reward that rises with the length of the answers."""

    r: float
    """Correlation of the two."""
    first: float
    last: float
    """Tokens of an answer, at first and at the end."""


def follows_length(reward: Sequence[float], length: Sequence[float]) -> Lengthening | None:
    """The correlation of reward with length, if length may explain the reward."""
    if len(length) < ENOUGH or len(length) != len(reward):
        return None
    rewards, lengths = (_stretches(values) for values in (reward, length))
    if lengths[-1] / max(lengths[0], 1e-9) < LONGER or rewards.std() == 0 or lengths.std() == 0:
        return None
    r = float(np.corrcoef(lengths, rewards)[0, 1])
    return Lengthening(r, float(lengths[0]), float(lengths[-1])) if r > FOLLOWS else None


def _stretches(values: Sequence[float]) -> np.ndarray:
    parts = np.array_split(np.asarray(values, dtype=float), min(len(values), _STRETCHES))
    return np.array([part.mean() for part in parts])


def collapse(entropy: Sequence[float]) -> tuple[float, float] | None:
    """(first, last) entropy if little of the first is left: that does not happen by chance and does not recover.

    None if the first is 0, as without a token that counts."""
    fell = len(entropy) > 1 and entropy[0] > 0 and entropy[-1] <= COLLAPSED * entropy[0]
    return (entropy[0], entropy[-1]) if fell else None


def fewer_ends(ends: Sequence[float]) -> tuple[float, float] | None:
    """(first, last) share of answers that end by themselves, if it fell and stayed low."""
    fell = len(ends) > LASTING and max(ends[-LASTING:]) <= ends[0] - ENDS_FEWER
    return (ends[0], ends[-1]) if fell else None


def misleading(explained: Sequence[float]) -> float | None:
    """The last explained variance, if the critic has learnt for a while and is still worse than none."""
    return explained[-1] if len(explained) >= ENOUGH and max(explained[-LASTING:]) < MISLEADS else None


# ---- The metrics ------------------------------------------------------------------------------------------------

REWARD = ("objective/scores", "reward")
LENGTH = ("answers/mean_length",)  # TRL's completions/mean_length counts reasoning, which no reward sees
KL = ("objective/kl", "kl")
ENTROPY = ("objective/entropy", "entropy")
KL_COEF, VALUE_LOSS, EXPLAINED = "objective/kl_coef", "loss/value_avg", "val/explained_variance"
CLIPPED, VALUE_CLIPPED = ("policy/clipfrac_avg", "clip_ratio/region_mean"), "val/clipfrac_avg"
APPROX_KL = "policy/approxkl_avg"
ENDS, CUT, ALIKE, PTX = "val/eos_rate", "completions/clipped_ratio", "frac_reward_zero_std", "loss/ptx_avg"

# ---- Notes on a curve ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """What a curve does, and what that means."""

    level: Literal["normal", "watch"]
    text: str
    source: str = ""
    """The paper behind a claim that the curve does not show."""


def watch(text: str, source: str = "") -> Note:
    return Note("watch", text, source)


def normal(text: str, source: str = "") -> Note:
    return Note("normal", text, source)


Notice = Callable[[Sequence[Row]], Note | None]

_DISPLACEMENT = "Razin et al. 2024, arXiv:2410.08847; Pal et al. 2024, arXiv:2402.13228"


def loss_turned(rows: Sequence[Row]) -> Note | None:
    steps, values = points(rows, "loss")
    rise = rises_at_the_end(values)
    if rise is None:
        return None
    at, low, last = rise
    return watch(
        f"It rises at the end, from {short(low)} near step {steps[at]:.0f} to {short(last)}: the steps are too "
        "large, or the last batches are harder. A lower learning rate, or fewer steps, tells which."
    )


def loss_stands_still(rows: Sequence[Row]) -> Note | None:
    course = trend(points(rows, "loss")[1])
    if course is None or not course.still or heldout_fell(rows) is not None:
        return None
    return watch(
        f"It does not fall beyond its noise ({short(course.first)} at first, {short(course.last)} at the end): "
        "by this loss, nothing was learnt. Look at the learning rate, the number of steps, and whether the answers "
        "carry loss."
    )


def heldout_turned(rows: Sequence[Row]) -> Note | None:
    steps, values = points(rows, "eval_loss")
    course = trend(points(rows, "loss")[1])
    if len(values) < 3 or course is None or not course.fell:
        return None
    low = int(np.argmin(values))
    if values[-1] <= 1.01 * values[low]:
        return None
    return watch(
        f"The held-out loss is lowest at step {steps[low]:.0f} ({short(values[low])}) and {short(values[-1])} at the "
        "end, while the training loss falls: from there on the model learns the data by heart. Stop earlier."
    )


def heldout_fell(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, "eval_loss")
    if len(values) < 2 or values[-1] >= values[0] or values[-1] > 1.01 * min(values):
        return None
    return normal(
        f"The held-out loss falls with it, from {short(values[0])} to {short(values[-1])}: no sign of overfitting."
    )


def chosen_fell(rows: Sequence[Row]) -> Note | None:
    """Uses the chosen answers' implicit reward, which is relative to the reference: their plain log-probability moves
    with the lengths in a batch."""
    chosen = trend(points(rows, "rewards/chosen", "logps/chosen")[1])
    margin = trend(points(rows, "rewards/margins")[1])
    if chosen is None or margin is None or not (chosen.fell and margin.rose):
        return None
    return normal(
        "The chosen answers become less probable than under the reference, and the margin still grows, since the "
        "rejected ones fall faster. A loss over pairs trains the difference only, so this is common and no fault in "
        "itself. Worry when the fall goes on to tens of nats, or when answers break off, repeat themselves or change "
        "the subject: probability then goes to answers that nobody labelled. Remedies: a higher beta, fewer steps.",
        _DISPLACEMENT,
    )


def chosen_rose(rows: Sequence[Row]) -> Note | None:
    chosen, rejected = (trend(points(rows, f"rewards/{name}")[1]) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or not chosen.rose or rejected.rose:
        return None
    return normal("The chosen answers rise and the rejected ones do not: the plainest way to a margin.")


def both_rose(rows: Sequence[Row]) -> Note | None:
    chosen, rejected = (trend(points(rows, f"rewards/{name}")[1]) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or not (chosen.rose and rejected.rose):
        return None
    return normal(
        "Both rise: chosen and rejected answers have much in common (form, length, subject), and the policy learns "
        "that too. Only the distance between the lines is the preference."
    )


def margin_stands_still(rows: Sequence[Row]) -> Note | None:
    course = trend(points(rows, "rewards/margins", "margin")[1])
    if course is None or not course.still:
        return None
    return watch(
        f"It does not leave its noise ({short(course.first)} at first, {short(course.last)} at the end): the labels "
        "were not learnt. Too few steps, too low a learning rate, or labels that contradict each other."
    )


def margin_outgrows_order(rows: Sequence[Row]) -> Note | None:
    _, margins = points(rows, "rewards/margins", "margin")
    if rose(margins[len(margins) // 2 :]) is None or saturated_at(rows) is None:
        return None
    return watch(
        "It grows on although the pairs are already ordered: the policy now learns confidence, not order. If each pair "
        "is labelled once, nothing in the loss bounds it.",
        "Azar et al. 2023, arXiv:2310.12036",
    )


def order_saturated(rows: Sequence[Row]) -> Note | None:
    steps, _ = points(rows, "rewards/accuracies", "accuracy")
    at = saturated_at(rows)
    if at is None:
        return None
    return watch(
        f"Nearly all pairs of a batch are ordered rightly from step {steps[at]:.0f} of {steps[-1]:.0f} on: either "
        "the pairs are easy, or the model knows them by heart. Held-out accuracy and the win rate tell which; this "
        "curve cannot."
    )


def order_is_chance(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, "rewards/accuracies", "accuracy")
    course = trend(values)
    if course is None or not course.still or course.last > 0.6:
        return None
    return watch(f"It ends at {100 * course.last:.0f} %, hardly above a coin: the order was not learnt.")


def saturated_at(rows: Sequence[Row]) -> int | None:
    """The point, in the first half of the steps, from which the mean share of rightly ordered pairs is SATURATED."""
    _, values = points(rows, "rewards/accuracies", "accuracy")
    for at in range(len(values) // 2 + 1 if len(values) >= ENOUGH_STEPS else 0):
        if float(np.mean(values[at:])) >= SATURATED and values[at] >= SATURATED:
            return at
    return None


def reward_rose_with_length(rows: Sequence[Row]) -> Note | None:
    lengthening = follows_length(points(rows, *REWARD)[1], points(rows, *LENGTH)[1])
    if lengthening is None:
        return None
    return watch(
        f"Reward rises, and so do answers, from {lengthening.first:.0f} to {lengthening.last:.0f} tokens: much of a "
        "reward can be length alone. Look at the win rate at equal length before believing it.",
        "Singhal et al. 2023, arXiv:2310.03716",
    )


def kl_grows(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, *KL)
    if not points(rows, *REWARD)[1]:  # KTO's, which is paid nothing
        return None
    if (half := rose(values[len(values) // 2 :])) is None:
        return None
    reward = trend(points(rows, *REWARD)[1][len(values) // 2 :])
    if reward is not None and not reward.rose:
        return watch(f"It grows on, to {short(half.last)} nats, while the reward does not: the distance buys nothing.")
    return normal(
        f"It grows to the end, to {short(half.last)} nats: distance still buys reward. A judge's preference rises with "
        "the distance at first and falls later, while the reward in training rises on.",
        "Gao et al. 2022, arXiv:2210.10760",
    )


def kl_coef_still_moves(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, KL_COEF)
    half = trend(values[len(values) // 2 :])
    if half is None or half.still:
        return None
    if half.rose:
        return watch(
            f"It still rises at the end, to {short(half.last)}: KL stays above kl_target although its price grows. A "
            "lower learning rate, or a shorter kl_horizon, brings them together."
        )
    return normal(
        f"It still falls at the end, to {short(half.last)}: KL is below kl_target, so there is room to move further."
    )


def value_loss_grows(rows: Sequence[Row]) -> Note | None:
    if (course := rose(points(rows, VALUE_LOSS)[1])) is None:
        return None
    return watch(
        f"It rises, from {short(course.first)} to {short(course.last)}: the critic falls behind the policy, or rewards "
        "spread wider. Explained variance tells which: it does not change with the scale of rewards."
    )


def critic_misleads(rows: Sequence[Row]) -> Note | None:
    last = misleading(points(rows, EXPLAINED)[1])
    if last is None:
        return None
    return watch(
        f"Below 0 at the end ({short(last)}): the critic's values are further from the returns than the mean return "
        "is, so they add noise to the advantages. More critic_warmup_rollouts, or a higher critic_learning_rate."
    )


def clip_holds_much(rows: Sequence[Row]) -> Note | None:
    last = at_the_end(points(rows, *CLIPPED)[1])
    if last is None or last <= MUCH_CLIPPED:
        return None
    return watch(
        f"{100 * last:.0f} % at the end: much of each pass over a rollout no longer moves the policy. A lower learning "
        "rate, or fewer passes."
    )


def clip_holds_the_critic(rows: Sequence[Row]) -> Note | None:
    _, values = points(rows, VALUE_CLIPPED)
    most = float(np.mean(values)) if len(values) >= ENOUGH_STEPS else 0.0
    if most <= MUCH_CLIPPED:
        return None
    return watch(
        f"{100 * most:.0f} % of the critic's values on average: a rollout may move them by cliprange_value at most, in "
        "units of reward, and rewards are larger than that. Lower weights in rewards bring them to a scale of 1, or a "
        "higher cliprange_value lets the critic follow."
    )


def steps_go_far(rows: Sequence[Row]) -> Note | None:
    steps, values = points(rows, APPROX_KL)
    far = [step for step, value in zip(steps, values, strict=True) if value > FAR]
    if not far:
        return None
    times = "once" if len(far) == 1 else f"{len(far)} times"
    return watch(
        f"Above {FAR} {times}, first at step {far[0]:.0f}: by then the policy differs from the one whose answers it "
        "learns from. A lower learning rate, or fewer passes."
    )


def ends_less(rows: Sequence[Row]) -> Note | None:
    fall = fewer_ends(points(rows, ENDS)[1] or [1 - cut for cut in points(rows, CUT)[1]])
    return fall and watch(
        f"{100 * fall[0]:.0f} % of answers end by themselves at first, {100 * fall[1]:.0f} % at the end: more answers "
        "run into max_new_tokens. A higher missing_eos_penalty, or a higher max_new_tokens if you want long answers."
    )


def siblings_paid_alike(rows: Sequence[Row]) -> Note | None:
    last = at_the_end(points(rows, ALIKE)[1])
    if last is None or last <= 0.5:
        return None
    return watch(
        f"{100 * last:.0f} % of prompts at the end teach nothing: all of their answers get the same reward. More "
        "answers to each (num_generations), a higher temperature, or a reward with finer steps.",
        "Yu et al. 2025, arXiv:2503.14476",
    )


def demonstrations_forgotten(rows: Sequence[Row]) -> Note | None:
    if (course := rose(points(rows, PTX)[1])) is None:
        return None
    return watch(
        f"It rises, from {short(course.first)} to {short(course.last)}: the policy forgets the demonstrations in spite "
        "of the mix. A higher ptx_coef."
    )


def entropy_collapsed(rows: Sequence[Row]) -> Note | None:
    fall = collapse(points(rows, *ENTROPY)[1])
    return fall and watch(
        f"It falls from {short(fall[0])} to {short(fall[1])} nats, to {100 * fall[1] / fall[0]:.0f} % of its first "
        "value: answers grow alike. Look at distinct word pairs and at the answers themselves."
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
    return watch(
        f"It jumps above ten times its median {times}, first at step {spikes[0]:.0f}: look at the rows of that batch. "
        "Clipping (max_grad_norm) bounds what one batch can do."
    )
