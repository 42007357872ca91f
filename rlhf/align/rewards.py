"""What an answer is paid for: reward functions by name, and their weighted sum.

A reward function is called as TRL calls one, `(prompts, completions, completion_ids, **columns)`, with conversations as
lists of {role, content}, and gives a number for each answer, or None where it has no opinion. An answer of which no
function has an opinion is not trained on.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

from rlhf.align.config.paid import PaidConfig
from rlhf.align.prompts import RolloutPrompt
from rlhf.checks import Check
from trueup.artifacts.reports import Normalisation, RewardCard
from trueup.data.own_code import error_boundary, file_of, load_own, short_name
from trueup.data.records import Candidate, Message, prompt_id
from trueup.data.rubric import Rubric, load_rubric
from trueup.errors import ConfigError, DataError, RunError
from trueup.files import Json
from trueup.models.heads import ENSEMBLE, has_ensemble
from trueup.models.loading import Loaded
from trueup.models.scoring import score_answers_by_heads
from trueup.runs import Finding, open_stage
from trueup.stages import command

Conversation = list[dict[str, str]]
RewardFunction = Callable[..., Sequence[float | None]]
SPREAD = "rewards/spread"
"""Metric: the mean over answers of the reward model's standard deviation over heads, in its units."""


class ModelRewards(NamedTuple):
    """What a reward model pays for B answers."""

    rewards: list[float | None]
    """None for an answer that it cannot read."""
    spread: float | None
    """Mean standard deviation over the heads of its ensemble; None without one."""


Scorer = Callable[[Sequence[Sequence[Message]], Sequence[Candidate]], ModelRewards]
"""A reward model, of B prompts and an answer to each."""


@dataclass
class WeightedRewards:
    """The sum of weight times reward over the functions that have an opinion. Remembers what it paid last."""

    functions: dict[str, RewardFunction]
    weights: dict[str, float]
    ends: Collection[int] = ()
    """Ids of the tokens that end an answer."""
    missing_eos_penalty: float = 0.0
    """What an answer loses whose last token is none of them."""
    text_of: Callable[[list[int]], str] | None = None
    """The text of an answer's tokens. TRL's leaves special tokens out, which people and judges are shown."""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """What each function paid for each answer, unweighted; NaN where it had no opinion."""
    totals: list[float] = field(default_factory=list)
    __name__: str = "rewards"  # TRL reports a function's metrics under its name

    def __call__(
        self, prompts: list[Conversation], completions: list[Conversation], **columns: Any
    ) -> list[float | None]:
        if self.text_of is not None:
            texts = [self.text_of(ids) for ids in columns["completion_ids"]]
            completions = [
                [*completion[:-1], {**completion[-1], "content": text}]
                for completion, text in zip(completions, texts, strict=True)
            ]
        self.parts = {
            name: self._ask(name, function, prompts, completions, columns) for name, function in self.functions.items()
        }
        self.totals = [self._sum(i) for i in range(len(prompts))]
        if self.missing_eos_penalty:
            ends = [bool(ids) and ids[-1] in self.ends for ids in columns["completion_ids"]]
            penalties = [0.0 if end else self.missing_eos_penalty for end in ends]
            self.totals = [total - penalty for total, penalty in zip(self.totals, penalties, strict=True)]
        return [None if math.isnan(total) else total for total in self.totals]

    def _ask(self, name: str, function: RewardFunction, prompts: Any, completions: Any, columns: Json) -> list[float]:
        rewards = function(prompts=prompts, completions=completions, **columns)
        if not isinstance(rewards, Iterable):
            raise DataError(f"rewards.{name}: gave {rewards!r}; a list is wanted, a number or None for each answer")
        values = list(rewards)
        if len(values) != len(prompts):
            raise DataError(
                f"rewards.{name}: gave {len(values)} rewards for {len(prompts)} answers; one each is wanted"
            )
        for value in values:
            if not (value is None or (isinstance(value, Real) and math.isfinite(value))):
                raise DataError(f"rewards.{name}: gave {value!r}; a finite number is wanted, or None for no opinion")
        return [math.nan if value is None else float(value) for value in values]

    def _sum(self, i: int) -> float:
        parts = [self.weights[name] * values[i] for name, values in self.parts.items() if not math.isnan(values[i])]
        return sum(parts) if parts else math.nan


def make_rewards(
    config: PaidConfig,
    scorer: Scorer | None,
    checks: Sequence[Check],
    ends: Collection[int],
    text_of: Callable[[list[int]], str] | None = None,
) -> WeightedRewards:
    """The rewards that the config names.

    scorer   the reward model, for `reward_model`
    checks   those of `config.checks`, in its order, for `ifeval` and `gsm8k`
    ends     ids of the tokens that end an answer
    text_of  the text of an answer's tokens, where answers come from TRL
    """
    functions: dict[str, RewardFunction] = {}
    weights: dict[str, float] = {}
    for name, weight in config.rewards.items():
        if name == "reward_model":
            assert scorer is not None
            function = _by_model(scorer, ends)
        elif name == "rubric":
            assert config.rubric is not None  # the campaign completes it
            function = _by_rubric(load_rubric(config.rubric), ends)
        elif name in ("ifeval", "gsm8k"):
            function = _by_check(name, checks)
        else:
            function = error_boundary(load_function(name), name, "rewards.")
        key = short_name(name)  # of a function's file, the folder says nothing to who reads a report
        functions[key], weights[key] = function, weight
    return WeightedRewards(functions, weights, ends, config.missing_eos_penalty, text_of)


def _by_model(scorer: Scorer, ends: Collection[int]) -> RewardFunction:
    def reward(
        prompts: list[Conversation],
        completions: list[Conversation],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], object] = lambda name, value: None,
        **_: Any,
    ) -> Sequence[float | None]:
        answers = [
            Candidate(text=completion[-1]["content"], token_ids=ids, finished=bool(ids) and ids[-1] in ends)
            for completion, ids in zip(completions, completion_ids, strict=True)
        ]
        paid = scorer([_messages(prompt) for prompt in prompts], answers)
        if paid.spread is not None:
            log_metric(SPREAD, paid.spread)
        return paid.rewards

    return reward


def _by_rubric(rubric: Rubric, ends: Collection[int]) -> RewardFunction:
    def reward(
        prompts: list[Conversation], completions: list[Conversation], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        return [
            rubric.score(_messages(prompt), completion[-1]["content"], bool(ids) and ids[-1] in ends)
            for prompt, completion, ids in zip(prompts, completions, completion_ids, strict=True)
        ]

    return reward


def _by_check(kind: str, checks: Sequence[Check]) -> RewardFunction:
    def reward(completions: list[Conversation], check: list[int], check_row: list[int], **_: Any) -> list[float | None]:
        return [
            _verdict(checks[n], row, completion[-1]["content"]) if n >= 0 and checks[n].kind == kind else None
            for n, row, completion in zip(check, check_row, completions, strict=True)
        ]

    return reward


def _verdict(check: Check, row: int, text: str) -> float | None:
    right = check.verify(row, text)
    return None if right is None else float(right)


def load_function(name: str) -> RewardFunction:
    """The function that `file.py:function` names; a DataError where there is none that could be called as TRL does."""
    function: RewardFunction = load_own(name, "rewards.")
    if not callable(function):
        raise DataError(f"rewards.{name}: {file_of(name)} has no function {name.rpartition(':')[2]}")
    if all(one.kind is not one.VAR_KEYWORD for one in inspect.signature(function).parameters.values()):
        raise DataError(f"rewards.{name}: takes no **columns; (prompts, completions, **columns) is how it is called")
    return function


def _messages(conversation: Conversation) -> list[Message]:
    return [Message(role=message["role"], content=message["content"]) for message in conversation]


def columns_of(rows: Sequence[RolloutPrompt], answers: Sequence[Candidate]) -> dict[str, list[Any]]:
    """The arguments with which TRL calls a reward function, for an answer to each prompt."""
    return {
        "prompts": [[message.model_dump() for message in row.prompt] for row in rows],
        "completions": [[{"role": "assistant", "content": answer.text}] for answer in answers],
        "completion_ids": [answer.token_ids for answer in answers],
        "check": [row.check for row in rows],
        "check_row": [row.check_row for row in rows],
        "category": [row.category for row in rows],
        "prompt_id": [prompt_id(row.prompt) for row in rows],
    }


# ---- The reward model -------------------------------------------------------------------------------------------


def normalisation(card: RewardCard | None) -> Normalisation:
    """Mean and standard deviation of the reward model's scores of held-out answers; 0 and 1 where it has none to tell.

    Rewards in its standard deviations make one `kl_coef` mean the same with every reward model.
    """
    figures = card.normalisation if card else None
    return Normalisation(mean=figures.mean if figures else 0.0, std=(figures.std if figures else 0.0) or 1.0)


def scorer(reward_model: Loaded, units: Normalisation, caution: float = 0.0) -> Scorer:
    """A reward model's scores in its standard deviations from the mean of held-out answers.

    caution  standard deviations over the heads of its ensemble that are taken from a score, after Coste et al. 2023,
             https://arxiv.org/abs/2310.02743, who take the variance; a standard deviation has the unit of the reward
    """

    def pay(prompts: Sequence[Sequence[Message]], answers: Sequence[Candidate]) -> ModelRewards:
        scores = score_answers_by_heads(reward_model, prompts, answers)
        rewards = [one and (one.score - caution * one.spread - units.mean) / units.std for one in scores]
        spreads = [one.spread / units.std for one in scores if one and one.deviations]
        return ModelRewards(rewards, sum(spreads) / len(spreads) if spreads else None)

    return pay


def refuse_unfit(config: PaidConfig) -> list[Finding]:
    """A RunError unless the reward model, if it pays, can judge this policy: sound by its own report card, or used in
    spite of it, which is a finding; and, if it was made from an SFT policy, made from this very one."""
    if "reward_model" not in config.rewards:
        return []
    sft, reward = (open_stage(config.run_dir, name) for name in ("sft", "reward"))
    findings = []
    if failure := reward.failure():
        if config.on_failed_reward_model == "refuse":
            raise RunError(f"{failure}, and a policy would learn its mistakes: {INSTEAD}")
        findings = [Finding("warn", "failed_reward_model", f"{failure}; it pays all the same (on_failed_reward_model)")]
    if reward.manifest.parent_sha256("sft") not in (sft.sha256, None):
        raise RunError(
            f"{reward.dir}: made from another SFT policy than {sft.dir}, whose answers it never learnt to judge: run "
            f"`{command(config.run_dir, 'reward')}` again"
        )
    if config.reward_caution and not has_ensemble(reward.dir / "model"):
        problem = NO_ENSEMBLE if reward.manifest.trained_parameters else NO_ENSEMBLE_IN_BASE
        raise ConfigError("align.reward_caution", [f"{config.reward_caution:g}, but {problem}"])
    return findings


_ONE_HEAD = "the reward model has one head, which differs from no other"
NO_ENSEMBLE = f"{_ONE_HEAD}: train it with several (reward.ensemble: 3), or leave the key out"
NO_ENSEMBLE_IN_BASE = f"{_ONE_HEAD}: name a reward.base that brings {ENSEMBLE}, train it, or leave the key out"

INSTEAD = (
    "label more pairs or better ones, align with dpo, which needs no reward model, reward with something else "
    "(align.rewards), or use it as it is (align.on_failed_reward_model: use)"
)
"""What to do about a reward model that failed."""
