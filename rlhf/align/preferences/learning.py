"""How far an alignment on labelled answers learns: what `auto` stands for, and whether it learnt the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from rlhf.align.config.labelled import LOSSES, DPOConfig, LabelledConfig
from rlhf.align.schema import LogpsChange
from trueup.console import say
from trueup.data.records import Preference
from trueup.models import loading
from trueup.models.scoring import completion_logps
from trueup.runs import Finding
from trueup.statistics.intervals import Interval
from trueup.statistics.win_rates import win_rate
from trueup.training.pairs import EncodedPair

# ---- What `auto` stands for --------------------------------------------------------------------------------------

ENOUGH_STEPS = 60
MOST_EPOCHS = 5.0
REACH = 0.03
"""Learning rate times steps. Adam moves a weight by about the learning rate a step, so this is about how far weights
can go; 7e-4 over 58 steps in configs/demo.yaml, 5e-5 over 600 in a training of 5,000 pairs."""
LEAST_RATE, MOST_RATE = 5e-5, 1e-3
WHOLE = 0.1
"""Share of an adapter's learning rate that is right when all weights are trained (https://thinkingmachines.ai/blog/lora)."""


C = TypeVar("C", bound=LabelledConfig)


def resolve_auto(config: DPOConfig, pairs: int) -> DPOConfig:
    """The config with a number in place of each `auto`; every choice says its reason."""
    if config.beta == "auto":
        loss = LOSSES[config.pair_losses[0]]
        config = config.model_copy(update={"beta": loss.beta})
        say(f"{'beta':<12} {loss.beta:g}: {loss.reason}")
    return resolve_schedule(config, pairs, "pairs")


def resolve_schedule(config: C, rows: int, of_what: str = "answers") -> C:
    """The config with a number in place of the `auto` of epochs and learning rate."""
    choices: dict[str, float] = {}
    steps_per_epoch = math.ceil(rows / config.train_batch_size)
    if config.num_train_epochs != "auto":
        epochs = config.num_train_epochs
    else:
        choices["num_train_epochs"] = epochs = max(1.0, min(MOST_EPOCHS, round(ENOUGH_STEPS / steps_per_epoch)))
        if config.max_steps < 0:
            why = f"about {ENOUGH_STEPS} steps are wanted, and at most {MOST_EPOCHS:g} passes"
            say(f"{'epochs':<12} {epochs:g} over {rows} {of_what} in batches of {config.train_batch_size}: {why}")
    steps = config.max_steps if config.max_steps > 0 else math.ceil(steps_per_epoch * epochs)
    if config.learning_rate == "auto":
        whole = WHOLE if config.full_finetuning else 1.0
        rate = whole * min(MOST_RATE, max(LEAST_RATE, REACH / steps))
        choices["learning_rate"] = rate = float(f"{rate:.1e}")
        say(f"{'rate':<12} {rate:g} over {steps} steps: the fewer the steps, the further each has to go")
    return config.model_copy(update=choices)


# ---- Whether it learnt -------------------------------------------------------------------------------------------

STILL_NATS = 0.1
"""A margin below this says that both answers of a pair are about as likely as before."""
ROUNDING = 1e-6
"""A margin below this share of the log-probabilities that it is the difference of is no margin: float32 keeps seven
digits of each."""


def heldout_accuracy(
    policy: loading.Loaded, pairs: list[Preference], rows: list[EncodedPair], reference: list[tuple[float, float]]
) -> Interval | None:
    """Share of held-out pairs whose chosen answer the policy made likelier by more than the rejected one, against the
    reference (the sign of the implicit reward's difference; half for a tie, which is also what rounding may have
    decided), with its interval over prompts."""
    if not pairs:
        return None
    prompts = [pair.prompt for pair in pairs]
    policy.model.eval()
    chosen = completion_logps(policy, prompts, [row.chosen_ids for row in rows])
    rejected = completion_logps(policy, prompts, [row.rejected_ids for row in rows])
    by_prompt: dict[str, list[float]] = {}
    for pair, now, other, (was, other_was) in zip(pairs, chosen, rejected, reference, strict=True):
        margin = (now - was) - (other - other_was)
        is_tie = abs(margin) <= ROUNDING * sum(map(abs, (now, was, other, other_was)))
        by_prompt.setdefault(pair.prompt_id, []).append(0.5 if is_tie else float(margin > 0))
    return win_rate(list(by_prompt.values())).interval


def logps_change(last: Mapping[str, float], beta: float) -> LogpsChange | None:
    """The change against the reference; None where no step has a margin.

    last  means of `first_and_last`
    """
    return LogpsChange(chosen=last["rewards/chosen"] / beta, rejected=last["rewards/rejected"] / beta) if last else None


def learning_doubts(margin: float | None, heldout: Interval | None) -> list[Finding]:
    """What speaks against a policy that learnt the preference.

    margin   nats by which the chosen answers of the training pairs gained on the rejected ones; None: no step told
    heldout  accuracy on held-out pairs; None where there are none
    """
    if heldout:
        share = f"{heldout.value:.0%} [{heldout.low:.0%}, {heldout.high:.0%}]"
        say(f"{'held out':<12} {share} of pairs in the right order, over {heldout.n} prompts")
    findings = []
    if margin is None:
        findings.append(
            Finding(
                "warn",
                "no_margin",
                "no step read chosen answers beside rejected ones, so that nothing tells what they gained: raise "
                "align.max_steps or align.train_batch_size",
            )
        )
    elif margin < STILL_NATS:
        findings.append(
            Finding(
                "warn",
                "margins_stand_still",
                f"chosen answers gained {margin:+.3f} nats on rejected ones, which is next to nothing: raise "
                "align.learning_rate or align.num_train_epochs, or leave both at auto",
            )
        )
    if heldout and not heldout.excludes(0.5):
        findings.append(
            Finding(
                "warn",
                "heldout_not_above_chance",
                f"{share} of held-out pairs are in the right order, over {heldout.n} prompts: this does not exclude "
                "chance. More labels would tell",
            )
        )
    elif heldout and heldout.value < 0.5:
        findings.append(
            Finding(
                "warn",
                "heldout_below_chance",
                f"only {heldout.value:.0%} of held-out pairs are in the right order: lower align.learning_rate or "
                "align.num_train_epochs, or look at the labels",
            )
        )
    return findings


def chosen_fell(nats: float) -> list[Finding]:
    """A warning where chosen answers became much less likely.

    It is common and not always harm: DPO needs only the difference. Past some point probability goes to neither answer.
    """
    if nats <= 10:
        return []
    message = f"log-probability of chosen answers fell by {nats:.1f} nats: raise beta or stop earlier"
    return [Finding("warn", "chosen_logps_fell", message)]


FIGURES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "kl",
)


def first_and_last(history: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Means of the training metrics over the first and the last tenth of the steps that have a margin; empty where none
    has."""
    rows = [row for row in history if "rewards/margins" in row]
    count = max(1, len(rows) // 10)

    def mean(part: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: sum(row[name] for row in part) / len(part) for name in FIGURES if part and name in part[0]}

    return mean(rows[:count]), mean(rows[-count:])
