"""Which of the kept steps becomes the result of an online alignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from peft import load_peft_weights, set_peft_model_state_dict
from transformers import TrainerCallback

from rlhf.align import guards
from rlhf.align.config.online import GRPOConfig, PPOConfig, RLOOConfig
from rlhf.align.config.paid import PaidConfig
from rlhf.align.prompts import RolloutPrompt
from rlhf.align.rewards import SPREAD, ModelRewards, WeightedRewards, columns_of, make_rewards, normalisation, scorer
from rlhf.align.rollouts import draw, logps_of
from rlhf.align.schema import Evaluation, KLPrice, OnlineReport, PaidReport, RolloutFigures
from rlhf.checks import Check
from trueup.artifacts.reports import Normalisation, RewardCards, SampledAnswers
from trueup.console import say
from trueup.errors import DataError
from trueup.launching import processes
from trueup.models.loading import Loaded, load_reward_model
from trueup.models.policies import reward_model_config
from trueup.runs import FinishedStage, StageRun
from trueup.training import adapters, loop

# ---- The best step ----------------------------------------------------------------------------------------------


class EvaluateSteps(TrainerCallback):
    """At the kept steps and at the end the policy answers the prompts that are kept for it; adapters are saved beside.

    All steps draw with the same random numbers, so that they differ by what they learnt.
    """

    def __init__(
        self,
        config: PaidConfig,
        stage: StageRun,
        policy: Loaded,
        prompts: Sequence[RolloutPrompt],
        rewards: WeightedRewards,
        reference_logps: Any,
        second: WeightedRewards | None = None,
    ):
        """second  what the best step is chosen by in place of `rewards`, which pay: `second_rewards`"""
        self.config, self.stage, self.policy, self.prompts = config, stage, policy, prompts
        self.rewards, self.reference_logps, self.second = rewards, reference_logps, second

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self.evaluate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        is_kept_step = state.global_step in adapters.kept_steps(state.max_steps, self.config.keep_steps)
        last = state.global_step == state.max_steps or control.should_training_stop
        if is_kept_step or last:
            adapters.save_adapter(model, self.stage.dir / adapters.STEPS / f"step-{state.global_step}")
            self.evaluate(state.global_step)

    def evaluate(self, step: int) -> None:
        """One answer to each of the prompts: mean reward and KL in nats per sequence, as a row of metrics.jsonl."""
        if not self.prompts:
            return
        # Of several processes one does it: a reward may cost money, or depend on chance.
        figures = processes.agreed(self._figures)
        self.stage.log({"step": step, **figures})
        spread = f", spread over heads {figures['eval/spread']:.2f}" if "eval/spread" in figures else ""
        by_second = f" (the second reward model: {figures['eval/second_reward']:.2f})" if self.second else ""
        say(
            f"{f'step {step}':<12} reward {figures['eval/reward']:.2f}{by_second}, KL {figures['eval/kl']:.2f}{spread} "
            "on the prompts kept for it"
        )

    def _figures(self) -> dict[str, float]:
        prompts = [row.prompt for row in self.prompts]
        answers = [row[0] for row in draw(self.policy, prompts, self.config.decoding(self.config.seed), 1)]
        logged: dict[str, float] = {}
        columns = columns_of(self.prompts, answers)
        own, reference = logps_of(self.policy, prompts, answers), self.reference_logps(prompts, answers)
        kl = [logp - ref for logp, ref in zip(own, reference, strict=True)]
        figures = {"eval/reward": _mean_reward(self.rewards, columns, logged), "eval/kl": sum(kl) / len(kl)}
        if SPREAD in logged:
            figures["eval/spread"] = logged[SPREAD]
        if self.second:
            figures["eval/second_reward"] = _mean_reward(self.second, columns)
        return figures


def _mean_reward(
    rewards: WeightedRewards, columns: Mapping[str, list[Any]], figures: dict[str, float] | None = None
) -> float:
    """figures  gets what the functions log"""
    rewards(**columns, log_metric=({} if figures is None else figures).__setitem__)
    totals = [total for total in rewards.totals if not math.isnan(total)]
    if not totals:
        raise DataError("align.rewards: none of them has an opinion on any of the prompts that choose the step")
    return sum(totals) / len(totals)


def second_rewards(
    config: PaidConfig, reward: FinishedStage | None, checks: Sequence[Check], ends: Collection[int]
) -> WeightedRewards | None:
    """`config.rewards` with the second reward model (split.judge_fraction) in place of the one that pays; None where
    there is none, or its report card failed.

    Among the steps of one training the reward model that pays prefers those that found its mistakes. The second one was
    trained on other prompts, and does not share them.
    """
    directory = reward.dir / "judge" / "model" if reward else None
    if not config.eval_prompts or directory is None or not directory.is_dir():
        return None
    assert reward is not None

    card = reward.report(RewardCards).judge
    if card and card.failed:
        say(f"{'best step':<12} chosen by the reward model that pays: the second one's report card failed")
        return None
    units = normalisation(card)

    def scores(prompts: Any, answers: Any) -> ModelRewards:
        # Loaded for each of the few evaluations: beside the roles of a training there may be no room for it.
        model = load_reward_model(directory, reward_model_config(config.run_dir, config.model))
        model.model.eval()
        return scorer(model, units)(prompts, answers)

    say(f"{'best step':<12} chosen by the second reward model, trained on other prompts than the one that pays")
    return make_rewards(config, scores, checks, ends)


def evaluations(stage: StageRun) -> dict[int, Evaluation]:
    """{step: its evaluation}, in order."""
    rows = loop.read_metrics(stage.dir / "metrics.jsonl")
    steps = [
        Evaluation(
            step=row["step"],
            reward=row["eval/reward"],
            kl=row["eval/kl"],
            second_reward=row.get("eval/second_reward"),
            spread=row.get("eval/spread"),
        )
        for row in rows
        if "eval/reward" in row
    ]
    return {row.step: row for row in sorted(steps, key=lambda row: row.step)}


def chosen_by(by_step: dict[int, Evaluation]) -> Literal["reward", "second_reward"]:
    """The figure that steps are chosen by: the second reward model's where there is one."""
    return "second_reward" if any(row.second_reward is not None for row in by_step.values()) else "reward"


def best_step(by_step: dict[int, Evaluation], kl_budget: float | None) -> int | None:
    """The step with the highest reward (`chosen_by`) within the KL budget; the first of equals; None if none is.

    Step 0, the policy at the start, does not stand for election: what to do when nothing beats it is the verdict's to
    say.
    """
    figure = chosen_by(by_step)
    rewards = {
        step: getattr(row, figure)
        for step, row in by_step.items()
        if step > 0 and (kl_budget is None or row.kl <= kl_budget)
    }
    return max(rewards, key=lambda step: (rewards[step], -step), default=None)


def choose_step(config: PaidConfig, stage: StageRun, model: Any, last: int) -> int:
    """Put the best step's adapter into the trained model and return the step.

    It is the last one where nothing tells, or where every weight is trained and no adapter was kept.
    """
    by_step = evaluations(stage)
    later = [step for step in by_step if step > 0]
    if config.full_finetuning or not later:
        return last
    best = best_step(by_step, config.kl_budget)
    if best is None:
        best = min(later, key=lambda step: by_step[step].kl)
        kl = by_step[best].kl
        stage.find(
            "warn",
            "no_step_within_budget",
            f"no kept step is within kl_budget, {config.kl_budget:g}: step {best} is nearest, at {kl:.2f} nats",
        )
    weights = load_peft_weights(str(stage.dir / adapters.STEPS / f"step-{best}"))
    set_peft_model_state_dict(model, weights, adapter_name="default")
    row = by_step[best]
    say(f"{'best step':<12} {best} of {last}: reward {row.reward:.2f}, KL {row.kl:.2f}")
    return best


def conclude(
    config: PPOConfig | GRPOConfig | RLOOConfig,
    stage: StageRun,
    model: Any,
    last: int,
    rewards: WeightedRewards,
    units: Normalisation,
    history: Sequence[RolloutFigures] = (),
    kl_coef: KLPrice | None = None,
) -> OnlineReport:
    """`settle` for an online algorithm.

    history  PPO's rollouts
    kl_coef  PPO's
    """
    paid = settle(config, stage, model, last, rewards, units, guards.in_rollouts(history, config.kl_key))
    return OnlineReport(**dict(paid), algorithm=config.algorithm, rollouts=list(history), kl_coef=kl_coef)


def settle(
    config: PaidConfig,
    stage: StageRun,
    model: Any,
    last: int,
    rewards: WeightedRewards,
    units: Normalisation,
    what_to_set: Callable[[float], str],
) -> PaidReport:
    """Put the best step's adapter into the trained model, find who is at fault if none beat the policy at the start,
    and return what the reports of all algorithms hold that are paid.

    last         steps trained
    units        what the reward model counts in
    what_to_set  what to do where the settings are at fault, by the KL of the last step
    """
    chosen_step = choose_step(config, stage, model, last)
    by_step = evaluations(stage)
    parents = {parent.stage: parent for parent in stage.parents}
    sample_report = parents["sample"].report(SampledAnswers) if "sample" in parents and config.round == 1 else None
    reward_verdict = parents["reward"].manifest.verdict if "reward" in parents else None
    finding = guards.whose_fault(what_to_set, by_step, sample_report, reward_verdict)
    stage.findings += [finding] if finding else []
    stage.facts["steps"] = chosen_step
    return PaidReport(
        rewards=rewards.weights,
        reward_caution=config.reward_caution or None,
        normalisation=units,
        evaluations=list(by_step.values()),
        chosen_step=chosen_step,
        chosen_by=chosen_by(by_step),
        steps_trained=last,
    )
