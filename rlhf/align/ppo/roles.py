"""The four roles of PPO: policy, reference, critic and reward model, on one base or as models of their own.

On one base, which is the policy at the start and stays frozen, a role is an adapter:

    policy     a fresh adapter, trained: at first it changes nothing
    reference  the base with every adapter off
    critic     a copy of the reward model's adapter and head, trained; without a reward model a fresh one
    reward     the reward model's adapter and head, frozen

With full fine-tuning each is a model of its own. Either way `Roles.playing(role, root)` gives the module that plays it,
and `module(..., scores=True)` one scalar per token where the role has a head.

A reward model of another base stays a model of its own (`Roles.reward`), which reads the text of answers in its own
tokens. The critic gives a value to each of the policy's tokens, so it cannot start from that model: it starts fresh on
the policy's base.

Three things go wrong here without an error, and each is held by a test (tests/rlhf/align/ppo/test_roles.py):
- PEFT's switch of adapters takes `requires_grad` from all others. A critic whose flags are off gets no gradient, so the
  flags are set again after every switch.
- Gradient checkpointing computes a forward pass again during the backward pass, by then under another adapter. The
  recomputation is told the role of its forward pass, wherever checkpointing is enabled from.
- An adapter that is loaded onto a base without its score head loses the head. The base gets one first, and what does
  not fit is an error.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.align.config.online import PPOConfig
from trueup.errors import ModelError
from trueup.models import loading
from trueup.models.heads import set_ensemble, train_in_float32
from trueup.models.loading import Loaded
from trueup.runs import StageRun
from trueup.training import adapters
from trueup.training.merging import merged
from trueup.training.trunk import Trunk

Role = Literal["policy", "reference", "critic", "reward"]

_ADAPTERS: dict[Role, str] = {"policy": "default", "critic": "critic", "reward": "reward"}
"""PEFT's name of each role's adapter; the policy's is the one that PEFT and TRL take for the trained one."""


def add_scores(model: Any, scorer: Any = None) -> None:
    """Let `model(..., scores=True)` give scalars (B, T): the head of `scorer` (itself) on its last hidden states.

    Through the model's own forward, since only that is seen by what wraps a model to run on several processes.
    """
    original = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, scores: bool = False, **kwargs: Any) -> Any:
        if not scores:
            return original(*args, **kwargs)
        by = scorer or self
        hidden = by.base_model(*args, use_cache=False, **kwargs).last_hidden_state  # (B, T, H)
        return by.score(hidden).squeeze(-1).float()

    model.forward = types.MethodType(forward, model)


class Roles:
    """Who answers which question. `model` is what a trainer holds: the policy, and the critic with it."""

    model: Any
    policy: Loaded
    """The policy's causal model, with its tokenizer; under adapters, of whatever role is played."""
    critic_from_reward: bool
    """Whether the critic starts from the reward model. If not, it is fresh and says 0."""
    reward: Loaded | None = None
    """The reward model, where it is a model of its own; None where it is an adapter, or does not pay."""
    reference_model: Any = None
    """The reference, where it is a model of its own."""
    trunk: Trunk
    """The layers that policy, critic and reference have in common; none where each is a model of its own."""

    def playing(self, role: Role, root: Any = None) -> AbstractContextManager[Any]:
        """The module that plays the role, for the time of the context.

        root  the trainer's model, which may wrap `model`; what is trained must be called through it
        """
        raise NotImplementedError

    def parameters(self, role: Literal["policy", "critic"]) -> dict[str, nn.Parameter]:
        """What is trained of a role, by name."""
        raise NotImplementedError

    def frozen_weights(self) -> Iterator[Tensor]:
        """Every weight that must not change: base, reference, reward model."""
        raise NotImplementedError

    def scale_critic(self, factor: float) -> None:
        """Multiply what the critic says by a factor."""
        raise NotImplementedError

    def merged(self, stage: StageRun, rows: Sequence[Sequence[int]]) -> Loaded:
        """The policy alone, as plain weights. The other roles are gone after it.

        rows  tokens to compare the logits on, before and after
        """
        raise NotImplementedError

    @property
    def trained_weights(self) -> dict[str, nn.Parameter]:
        return {**self.parameters("policy"), **self.parameters("critic")}

    def fingerprint(self) -> int:
        """Changes with any bit of what is frozen."""
        digest = 0
        for n, weight in enumerate(self.frozen_weights()):
            digest = (digest * 31 + int(torch.hash_tensor(weight.detach()).item()) + n) % 2**64
        return digest

    def save(self, path: Path) -> None:
        """Write what is trained, critic included; PEFT and FSDP would keep the active adapter alone."""
        save_file({name: weight.detach().contiguous() for name, weight in self.trained_weights.items()}, path)

    def load(self, path: Path) -> None:
        """Put saved values into what is trained."""
        weights = load_file(path)
        if weights.keys() != self.trained_weights.keys():
            names = sorted(weights.keys() ^ self.trained_weights.keys())[:3]
            raise ModelError(f"{path}: holds other weights than this config trains ({', '.join(names)}, ...)")
        with torch.no_grad():
            for name, weight in self.trained_weights.items():
                weight.copy_(weights[name])


# ---- On one base ------------------------------------------------------------------------------------------------


class SharedBase(Roles):
    """One base in memory, an adapter for each role."""

    def __init__(self, config: PPOConfig, policy: Loaded, reward_adapter: Path | None, other: Loaded | None = None):
        """reward_adapter, other  the reward model: an adapter on this base, or a model of another base"""
        base = policy.model
        # Before PEFT wraps the model: an adapter that brings a score head finds the place for it.
        base.score = nn.Linear(base.config.get_text_config().hidden_size, 1, bias=False).to(base.device)
        train_in_float32(base.score)
        add_scores(base)
        self.policy, self.reward, self.critic_from_reward = policy, other, reward_adapter is not None
        # Both before PEFT wraps the model, since `lora.last_layers` is looked up by the names of its modules.
        lora, critic = (_beside_head(adapters.adapter(config, base, t)) for t in (TaskType.CAUSAL_LM, TaskType.SEQ_CLS))
        self.model: PeftModel = get_peft_model(base, lora)
        if reward_adapter:
            load_reward_adapter(self.model, reward_adapter)
            self.model.add_adapter("critic", copy.deepcopy(self.model.peft_config["reward"]))
            self._copy("reward", "critic")
        else:
            self.model.add_adapter("critic", critic)
            nn.init.zeros_(base.score.modules_to_save["critic"].weight)
        self.trunk = Trunk(base.base_model)
        self.role: Role = "policy"
        self._switch("policy")
        self._keep_roles_when_checkpointing(base)

    @contextmanager
    def playing(self, role: Role, root: Any = None) -> Iterator[Any]:
        if role == "reward" and self.reward:
            yield self.reward.model
            return
        before = self.role
        self._switch(role)
        try:
            yield root or self.model
        finally:
            self._switch(before)

    def _switch(self, role: Role) -> None:
        if role != self.role and self.role == "reference":
            self.model.base_model.enable_adapter_layers()
        if role == "reference":
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.set_adapter(_ADAPTERS[role])
        self.role = role
        self._restore_gradients()

    def _restore_gradients(self) -> None:
        self.model.set_requires_grad(["default", "critic"], True)
        if self.critic_from_reward:
            self.model.set_requires_grad("reward", False)

    def _keep_roles_when_checkpointing(self, base: Any) -> None:
        """TRL and transformers enable checkpointing from several places, and all of them end here."""
        enable = base._set_gradient_checkpointing

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), self.playing(self.role)  # of the forward pass, of its recomputation

        @functools.wraps(enable)
        def enable_with_roles(*args: Any, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any) -> None:
            func = functools.partial(gradient_checkpointing_func, use_reentrant=False, context_fn=contexts)
            enable(*args, gradient_checkpointing_func=func, **kwargs)

        base._set_gradient_checkpointing = enable_with_roles

    def _copy(self, source: str, target: str) -> None:
        weights = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                if f".{target}." in name:
                    weight.copy_(weights[name.replace(f".{target}.", f".{source}.")])

    def parameters(self, role: Literal["policy", "critic"]) -> dict[str, nn.Parameter]:
        adapter = f".{_ADAPTERS[role]}."
        return {name: weight for name, weight in self.model.named_parameters() if adapter in name}

    def frozen_weights(self) -> Iterator[Tensor]:
        for name, weight in self.model.named_parameters():
            if ".default." not in name and ".critic." not in name:
                yield weight
        if self.reward:
            yield from self.reward.model.parameters()

    def scale_critic(self, factor: float) -> None:
        with torch.no_grad():
            self.policy.model.score.modules_to_save["critic"].weight.mul_(factor)

    def merged(self, stage: StageRun, rows: Sequence[Sequence[int]]) -> Loaded:
        self._switch("policy")
        base: Any = merged(self.model, stage, rows)
        del base.score
        set_ensemble(base, None)
        self.policy.model = base
        return self.policy


def _beside_head(lora: LoraConfig) -> LoraConfig:
    """`all-linear` would take the score head for a layer of the base."""
    lora.exclude_modules = [*(lora.exclude_modules or []), "score"]
    return lora


def load_reward_adapter(model: PeftModel, directory: Path) -> None:
    """Load the reward model's adapter and head beside the policy's. A key that finds no place is an error."""
    if not directory.is_dir():
        raise ModelError(
            f"{directory}: no such adapter: the reward model was trained whole. Train the policy so too "
            "(align.full_finetuning: true), or the reward model with an adapter"
        )
    result = model.load_adapter(directory, "reward", is_trainable=False)
    if result.unexpected_keys:
        raise ModelError(f"{directory}: does not fit the policy: no place for {', '.join(result.unexpected_keys[:3])}")


# ---- Models of their own ----------------------------------------------------------------------------------------


class SeparateModels(Roles):
    """A model for each role, every weight of policy and critic trained."""

    def __init__(
        self, config: PPOConfig, policy: Loaded, start: Path, reward: Path | None, other: Loaded | None = None
    ):
        """reward, other  the reward model: one that was trained from the same policy, or a model of another base"""
        self.policy, self.reward, self.critic_from_reward = policy, other, reward is not None
        self.model = policy.model
        self.trunk = Trunk(self.model.base_model)
        critic = loading.load_reward_model(
            reward or start, config.model, master_weights=True, fresh_head=not reward
        ).model
        if reward is None:
            nn.init.zeros_(critic.score.weight)
        # A part of the policy's module, so that one optimiser, one wrapper and one backward pass hold both.
        self.model.critic = critic
        add_scores(self.model, critic)
        self.reference_model = loading.load_policy(start, config.model).model.eval().requires_grad_(False)
        if reward is not None:
            self.reward = loading.load_reward_model(reward, config.model)
            self.reward.model.eval().requires_grad_(False)
        if self.reward:
            add_scores(self.reward.model)

    @contextmanager
    def playing(self, role: Role, root: Any = None) -> Iterator[Any]:
        scorer = self.reward.model if self.reward else None
        yield {"reference": self.reference_model, "reward": scorer}.get(role, root or self.model)

    def parameters(self, role: Literal["policy", "critic"]) -> dict[str, nn.Parameter]:
        return {
            name: weight
            for name, weight in self.model.named_parameters()
            if name.startswith("critic.") == (role == "critic")
        }

    def frozen_weights(self) -> Iterator[Tensor]:
        yield from self.reference_model.parameters()
        if self.reward is not None:
            yield from self.reward.model.parameters()

    def scale_critic(self, factor: float) -> None:
        with torch.no_grad():
            self.model.critic.score.weight.mul_(factor)

    def merged(self, stage: StageRun, rows: Sequence[Sequence[int]]) -> Loaded:
        del self.model.critic
        return self.policy
