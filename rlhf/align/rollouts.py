"""What the online algorithms share: whom they ask, how answers are drawn, and which step is the best.

Everything that is drawn is a function of the seed and of how far the training is, and of nothing else: a run that was
killed and goes on draws what it would have drawn, on one process or on several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from peft import PeftModel

from rlhf.align.config.online import OnlineConfig
from rlhf.align.rewards import Conversation
from trueup.data.records import Candidate, Message
from trueup.files import Json
from trueup.models.chat import encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.course import drawn
from trueup.models.loading import Loaded, load_policy
from trueup.models.sampling import Decoding, sample
from trueup.models.scoring import completion_logps
from trueup.runs import FinishedStage, StageRun
from trueup.training.arguments import trainer_arguments


def online_arguments(config: OnlineConfig, stage: StageRun, policy: Loaded, schedule: Dataset) -> Json:
    """Arguments that TRL's GRPO and RLOO configs, and PPO's, take from ours.

    schedule  all prompts of the training
    """
    updates = config.updates_per_rollout
    arguments = trainer_arguments(config, stage, policy, [config.max_length])
    del arguments["max_length"]
    return arguments | {
        "num_train_epochs": 1,  # the schedule is the whole training
        "max_steps": len(schedule) * config.num_generations // config.rollout_batch_size * updates,
        "save_steps": math.ceil(config.save_steps / updates) * updates,
        "shuffle_dataset": False,
        "disable_dropout": True,
        "num_generations": config.num_generations,
        "generation_batch_size": config.rollout_batch_size,
        "max_completion_length": config.most_tokens,
        "temperature": config.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "remove_unused_columns": False,
    }


# ---- Drawing answers --------------------------------------------------------------------------------------------


class Sampler:
    """TRL's `rollout_func`: draws the answers of a rollout with `trueup.models.sampling`.

    The seed of a rollout follows from the campaign's and the step, so that a prompt that comes again is answered anew.
    A policy learns from the tokens that it drew, of its reasoning as of its answer. Those that closed its reasoning by
    force are none of them: where answers behind them are poor, it would learn never to close a block.
    """

    def __init__(self, config: OnlineConfig, policy: Loaded):
        self.config, self.policy = config, policy

    def __call__(self, prompts: list[Conversation], trainer: Any) -> dict[str, list[list[int]] | None]:
        k = self.config.num_generations
        distinct = prompts[::k]  # each comes k times in a row
        conversations = [[Message(**message) for message in prompt] for prompt in distinct]
        decoding = self.config.decoding(self.config.seed * 1_000_003 + trainer.state.global_step + 1)
        answers = [answer for row in draw(self.policy, conversations, decoding, k) for answer in row]
        trainer._log_metric("answers/mean_length", sum(answer.num_tokens for answer in answers) / len(answers))
        encoded = [encode_prompt(self.policy.tokenizer, prompt) for prompt in conversations for _ in range(k)]
        return {
            "prompt_ids": encoded,
            "completion_ids": [answer.token_ids for answer in answers],
            "env_mask": [drawn(self.policy.tokenizer, answer) for answer in answers],
            "logprobs": None,  # computed by the trainer, in the same way as during the update
        }


def draw(policy: Loaded, prompts: Sequence[list[Message]], decoding: Decoding, k: int) -> list[list[Candidate]]:
    """k answers to each prompt, from a model that is being trained."""
    was_training = policy.model.training
    policy.model.eval()  # checkpointing of activations, which is for training, forbids the cache
    try:
        return sample(policy, prompts, decoding, k, batch_size=64)
    finally:
        policy.model.train(was_training)


def logps_of(policy: Loaded, prompts: Sequence[list[Message]], answers: Sequence[Candidate]) -> list[float]:
    """log pi(answer | prompt) at temperature 1 of a model that is being trained, over the tokens that were drawn: a
    ratio of two policies at others says nothing of their KL."""
    counted = [drawn(policy.tokenizer, answer) for answer in answers]
    was_training = policy.model.training
    policy.model.eval()
    try:
        return completion_logps(policy, prompts, [answer.token_ids for answer in answers], counted=counted)
    finally:
        policy.model.train(was_training)


def reference_logps(
    config: ModelConfig, policy: Loaded, model: Any, start: FinishedStage
) -> Callable[[Any, Any], list[float]]:
    """The reference's log-probabilities: the policy with its adapter off, or a model of its own where all weights
    are trained."""
    if not isinstance(model, PeftModel):
        reference = load_policy(start.dir / "model", config)
        return lambda prompts, answers: logps_of(reference, prompts, answers)

    def logps(prompts: Any, answers: Any) -> list[float]:
        with model.disable_adapter():
            return logps_of(policy, prompts, answers)

    return logps
