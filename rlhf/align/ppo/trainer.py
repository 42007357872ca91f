"""PPO as a thin layer on trl.GRPOTrainer, which brings rollouts, reward functions, logging, checkpoints and accelerate.

GRPO and PPO sample alike and differ in what they make of it. So this takes what `_generate_and_score_completions`
returns, adds reference, values and token-level advantages, and computes its own loss. What it relies on in TRL 1.16 is
named by tests/rlhf/align/test_trl_contract.py, so that a new TRL says what broke.

Shapes: B answers, S tokens of the longest prompt (padded left), T of the longest answer (padded right).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from rlhf.align import guards
from rlhf.align.config.online import PPOConfig
from rlhf.align.ppo import mathematics
from rlhf.align.ppo.batches import Batch, join, parts, widen
from rlhf.align.ppo.roles import Roles
from rlhf.align.rewards import WeightedRewards
from rlhf.align.schema import PPOState, RolloutFigures, RolloutSample
from trueup.artifacts.manifest import Finding
from trueup.console import say
from trueup.data.containers.appended import append_rows
from trueup.data.records import Candidate
from trueup.data.texts import repetition
from trueup.errors import DataError
from trueup.files import Json, read_text, write_atomically
from trueup.models import tensors
from trueup.models.course import candidate
from trueup.runs import StageRun
from trueup.training.loop import SAMPLES, not_finite

WEIGHTS, STATE = "roles.safetensors", "ppo_state.json"
_SAMPLES_PER_ROLLOUT = 3
"""Answers of every rollout that samples.jsonl keeps."""


class PPOTrainer(GRPOTrainer):
    """Policy and critic on one backward pass. `model` is `roles.model`; `rewards` is TRL's only reward function."""

    def __init__(
        self,
        config: PPOConfig,
        stage: StageRun,
        roles: Roles,
        rewards: WeightedRewards,
        demonstrations: Callable[[int, int], Batch] | None = None,
        **kwargs: Any,
    ):
        """demonstrations  (micro-batch number, rows) -> input_ids, attention_mask, labels, for `ptx_coef`"""
        self.config, self.stage, self.roles, self.rewards = config, stage, roles, rewards
        self.demonstrations, self.kl_coef = demonstrations, config.kl_coef
        self.history: list[RolloutFigures] = []
        self.guard_findings: dict[str, Finding] = {}
        self._rollout: Batch | None = None
        self._batches: list[Batch] = []
        super().__init__(model=roles.model, reward_funcs=rewards, **kwargs)
        if roles.reference_model is not None:
            add_fused_lm_head(roles.reference_model, self.temperature, outputs=("log_probs", "entropy"))
        # Of means over tokens. bf16 rounds log-probabilities to two or three digits, and not alike in a batch of other
        # rows: log-ratios that should be 0 were 0.007 to 0.027 nats in 25 rollouts of SmolLM2-135M on an H100.
        self.tolerance, self.ratio_tolerance = (0.02, 0.1) if self.args.bf16 else (1e-4, 1e-4)
        self.frozen_fingerprint = roles.fingerprint()

    # ---- Rollout ------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Json]) -> Batch:
        """A rollout: sampled answers with everything that the update needs, computed before the policy moves."""
        config = self.config
        # 1. Sample
        rollout = super()._generate_and_score_completions(inputs)
        batch = {key: rollout[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}

        # 2. Score. An answer of which no reward has an opinion counts nowhere: 0 would be an opinion.
        totals = torch.tensor(self.rewards.totals, device=batch["completion_ids"].device)
        mask = batch["completion_mask"].bool() & ~totals.isnan()[:, None]
        self._require_an_opinion(mask)
        scores = totals.nan_to_num()

        # 3. Reference: its log-probabilities, and those of the policy and the critic's values before the update
        readings = self._read_all(batch)
        old, ref, entropy, values = (readings.pop(key) for key in ("old_logprobs", "ref_logprobs", "entropy", "values"))
        if self.state.global_step == 0:
            gap = mathematics.masked_mean((old - ref).abs(), mask)
            self._require(gap < self.tolerance, f"at step 0 policy and reference differ by {gap:.4f} nats per token")

        # 4. Rewards of every token: what a nat of KL costs, and the score at the end. A token that closed the reasoning
        # by force was not drawn: it costs no KL and has no advantage, but the score passes it on its way back.
        drawn = rollout["tool_mask"].bool()
        ref = torch.where(drawn, ref, old)
        rewards = mathematics.token_rewards(old, ref, scores, mask, self.kl_coef)

        # 5. Whiten the rewards, their mean apart
        if config.whiten_rewards:
            rewards = mathematics.whiten(rewards, mask, *self._spread(rewards, mask), shift_mean=False)

        # 6. Advantages, whitened, and the returns that the critic learns
        advantages, returns = mathematics.gae(rewards, values, mask, config.gamma, config.lam)
        advantages = mathematics.whiten(advantages, mask & drawn, *self._spread(advantages, mask & drawn))

        kl = ((old - ref) * mask).sum(dim=1)  # (B,)
        self._record(inputs, batch, mask, kl, entropy, scores, values, returns)
        self._adapt_kl_coef()
        self._guard()
        return {
            **batch,
            **readings,
            "mask": mask,
            "old_logprobs": old,
            "values": values,
            "advantages": advantages,
            "returns": returns,
        }

    def _require_an_opinion(self, mask: Tensor) -> None:
        if not self.accelerator.reduce(mask.sum(), reduction="sum"):
            raise DataError(
                f"align.rewards: none of {', '.join(self.rewards.functions)} has an opinion on any answer of the "
                f"rollout at step {self.state.global_step}, so there is nothing to learn from it"
            )

    def _adapt_kl_coef(self) -> None:
        """The price of a nat of KL in the next rollout, by the KL of this one."""
        config = self.config
        if config.kl_target is not None:
            self.kl_coef = mathematics.adapted_kl_coef(
                self.kl_coef, self.history[-1].kl, config.kl_target, config.kl_horizon, config.rollout_batch_size
            )

    def _guard(self) -> None:
        """Report what has gone wrong by this rollout, each kind once, and end the training if that was asked for."""
        for finding in guards.look(self.history, self.config.kl_budget):
            if finding.code in self.guard_findings:
                continue
            message = f"step {self.state.global_step}: {finding.message}"
            self.guard_findings[finding.code] = replace(finding, message=message)
            say(f"{'guard':<12} {message}")
            self.control.should_training_stop |= self.config.guards == "stop"

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[None, None, None]:
        """TRL reads old log-probabilities in some settings and not in others. `_read_all` always does, so not here."""
        return None, None, None

    @torch.no_grad()
    def _read_all(self, batch: Batch) -> Batch:
        """old_logprobs, ref_logprobs, entropy and values, each (B, T).

        And what the layers below all adapters make of prompts (B, S, H) and answers (B, T, H): the update starts there.
        """
        readings: list[Batch] = []
        for part in parts(batch, self.args.per_device_train_batch_size):
            width = part["completion_ids"].size(1)
            with self.roles.trunk.recording() as trunk_states:
                old, entropy = self.token_logprobs(self.model, part)
            for hidden in trunk_states:
                part |= {"prompt_trunk": hidden[:, :-width], "trunk": hidden[:, -width:]}
            with self.roles.playing("reference", self.model) as reference:
                ref, _ = self.token_logprobs(reference, part)
            values = self.token_values(self.model, part)
            of_trunk = {key: part[key] for key in ("prompt_trunk", "trunk") if trunk_states}
            readings.append(
                {"old_logprobs": old, "ref_logprobs": ref, "entropy": entropy, "values": values, **of_trunk}
            )
        widths = {
            key: batch["prompt_ids" if key.startswith("prompt_") else "completion_ids"].size(1) for key in readings[0]
        }
        return {
            key: torch.cat([widen(part[key], width, left=key.startswith("prompt_")) for part in readings])
            for key, width in widths.items()
        }

    def token_logprobs(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """log pi of the answers' tokens and the entropy where each was drawn, both (B, T), at `temperature`.

        Positions count real tokens only, so that padding on either side changes nothing.
        """
        tokens, mask, width = join(batch)
        labels = tokens.masked_fill(~mask, -100)
        labels[:, :-width] = -100
        with self._from_trunk(batch), self.accelerator.autocast():
            out = model(
                input_ids=tokens,
                attention_mask=mask.long(),
                position_ids=tensors.positions(mask),
                labels=labels,
                fused_lm_head=True,
            )
        return out.log_probs[:, -width:].float(), out.entropy[:, -width:].float()

    def token_values(self, model: Any, batch: Batch) -> Tensor:
        """The critic's V (B, T): what it expects before each token of the answer is drawn."""
        tokens, mask, width = join(batch)
        with self.roles.playing("critic", model) as critic, self._from_trunk(batch), self.accelerator.autocast():
            scores = critic(
                input_ids=tokens, attention_mask=mask.long(), position_ids=tensors.positions(mask), scores=True
            )
        return scores[:, -width - 1 : -1].float()

    def _from_trunk(self, batch: Batch) -> AbstractContextManager[None]:
        """Forward passes begin where the trunk ends, for a batch that has what it made of the tokens."""
        has_trunk = "trunk" in batch
        return self.roles.trunk.given(torch.cat([batch["prompt_trunk"], batch["trunk"]], dim=1) if has_trunk else None)

    def _everywhere(self, x: Tensor) -> Tensor:
        """Rows of all processes, padded to one width."""
        return self.accelerator.gather(self.accelerator.pad_across_processes(x, dim=1))

    def _spread(self, x: Tensor, mask: Tensor) -> tuple[float, float]:
        """Mean and variance over the rollouts of all processes."""
        return mathematics.spread(self.accelerator.reduce(mathematics.moments(x, mask), reduction="sum"))

    # ---- Batches ------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        """The next micro-batch; a new rollout when the last one has been passed over often enough.

        TRL shuffles a rollout once; here each pass has an order of its own, by the seed and the step alone.
        """
        per_pass = self.args.steps_per_generation
        if self._rollout is None or self._step % (per_pass * self.config.num_ppo_epochs) == 0:
            self._rollout = self._generate_and_score_completions(generation_batch)
            self._batches = []
        if not self._batches:
            generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self._pass)
            order = torch.randperm(len(self._rollout["mask"]), generator=generator)
            shuffled = {key: value[order.to(value.device)] for key, value in self._rollout.items()}
            self._batches = list(parts(shuffled, self.args.per_device_train_batch_size))
            self._count_tokens()
        return self._batches.pop(0)

    @property
    def _pass(self) -> int:
        """Passes over rollouts so far. Steps count through a resumed run, `_step` does not."""
        return self.state.global_step * self.args.gradient_accumulation_steps // self.args.steps_per_generation

    def _count_tokens(self) -> None:
        """Tokens of each optimiser step on all processes, which its micro-batches' sums are divided by: a step is then
        the same whether its rows go through at once or in parts."""
        per_step = self.args.gradient_accumulation_steps
        for start in range(0, len(self._batches), per_step):
            step = self._batches[start : start + per_step]
            count = torch.stack([part["mask"].sum() for part in step]).sum()
            total = self.accelerator.reduce(count, reduction="sum").clamp(min=1)
            for part in step:
                part["num_tokens"] = total

    # ---- Loss ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """Clipped surrogate plus vf_coef times the clipped value error, means over the tokens of the optimiser step."""
        config, mask = self.config, inputs["mask"]
        logprobs, entropy = self.token_logprobs(model, inputs)
        values = self.token_values(model, inputs)
        policy, clipped = mathematics.policy_loss(
            logprobs, inputs["old_logprobs"], inputs["advantages"], mask, config.cliprange
        )
        value, value_clipped = mathematics.value_loss(
            values, inputs["values"], inputs["returns"], mask, config.cliprange_value
        )
        log_ratio = ((logprobs - inputs["old_logprobs"]) * mask).detach()
        if self.state.global_step % config.updates_per_rollout == 0:
            gap = mathematics.masked_mean(log_ratio.abs(), mask)
            self._require(
                gap < self.ratio_tolerance,
                f"before the first update from a rollout, log-ratios are {gap:.4f} nats, not 0",
            )
        # While the critic warms up, a factor of 0 and not a missing term: on several processes every weight must get a
        # gradient.
        moves = float(self.state.global_step >= config.critic_warmup_rollouts * config.updates_per_rollout)
        total = moves * policy.sum() + config.vf_coef * value.sum()
        # Processes average their gradients, so each divides by its share of the tokens.
        loss = total * self.accelerator.num_processes / inputs["num_tokens"]
        figures = {}
        if self.demonstrations is not None:
            ptx = self._ptx_loss(model, len(mask))
            loss = loss + moves * config.ptx_coef * ptx / self.args.gradient_accumulation_steps
            figures["loss/ptx_avg"] = ptx.detach()
        if not loss.isfinite():
            raise not_finite(f"align, step {self.state.global_step}", f"the loss is {loss.item()}")

        by_token = {
            "loss/policy_avg": policy,
            "loss/value_avg": value,
            "policy/approxkl_avg": 0.5 * log_ratio.square(),
            "policy/clipfrac_avg": clipped,
            "policy/entropy_avg": entropy,
            "val/clipfrac_avg": value_clipped,
            "val/ratio": log_ratio.exp(),
        }
        figures |= {name: mathematics.masked_mean(figure.detach(), mask) for name, figure in by_token.items()}
        means = self.accelerator.reduce(torch.stack(list(figures.values())).float(), reduction="mean")
        for name, mean in zip(figures, means.tolist(), strict=True):
            self._note(name, mean)
        return loss

    def _ptx_loss(self, model: Any, rows: int) -> Tensor:
        """Mean negative log-likelihood of demonstrations (Ouyang et al. 2022, eq. 2), at temperature 1."""
        assert self.demonstrations is not None
        number = self.state.global_step * self.args.gradient_accumulation_steps
        number += self._step % self.args.gradient_accumulation_steps
        batch = self.demonstrations(number, rows)
        with self.accelerator.autocast():
            return model(**{key: value.to(self.accelerator.device) for key, value in batch.items()}).loss

    # ---- What is trained ----------------------------------------------------------------------------------------

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        """AdamW over policy and critic by name. The stock one takes what has `requires_grad` at the moment it is made,
        and a switch of adapters may just have taken that away."""
        if getattr(self, "optimizer", None) is None:
            critic = self.config.critic_learning_rate
            groups = [
                {"params": list(self.roles.parameters("policy").values()), "lr": self.args.learning_rate},
                {
                    "params": list(self.roles.parameters("critic").values()),
                    "lr": self.args.learning_rate if critic is None else critic,
                },
            ]
            self.optimizer = torch.optim.AdamW(
                groups,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip policy and critic each by its own norm: under a common one, the larger gradients of a critic that is far
        off would shrink the policy's step. Returns the norm of both, as it was before."""
        norms = []
        for role in ("policy", "critic"):
            weights = list(self.roles.parameters(role).values())
            norms.append(torch.as_tensor(self.accelerator.clip_grad_norm_(weights, self.args.max_grad_norm)))
            self._note("policy/grad_norm" if role == "policy" else "val/grad_norm", norms[-1])
        return torch.linalg.vector_norm(torch.stack(norms))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._require(
            self.roles.fingerprint() == self.frozen_fingerprint,
            "a frozen weight of base, reference or reward model changed",
        )
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """What is trained, and what PPO keeps beside it, in place of PEFT's files; of several processes one writes."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.roles.save(folder / WEIGHTS)
        state = PPOState(kl_coef=self.kl_coef, history=self.history, guard_findings=self.guard_findings)
        write_atomically(folder / STATE, state.text())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.roles.load(folder / WEIGHTS)
        state = PPOState.model_validate_json(read_text(folder / STATE))
        self.kl_coef, self.history, self.guard_findings = state.kl_coef, state.history, state.guard_findings

    # ---- What is recorded ---------------------------------------------------------------------------------------

    def _require(self, holds: Tensor | bool, otherwise: str) -> None:
        if not bool(holds):
            raise AssertionError(f"PPO, step {self.state.global_step}: {otherwise}")

    def _note(self, name: str, value: Any) -> None:
        self._metrics["train"][name].append(float(value))

    def _record(
        self,
        inputs: list[Json],
        batch: Batch,
        mask: Tensor,
        kl: Tensor,
        entropy: Tensor,
        scores: Tensor,
        values: Tensor,
        returns: Tensor,
    ) -> None:
        """Metrics of the rollout under the field's names, a row of `history` for the guards, and samples.jsonl."""
        counts = mask.any(dim=1)

        def mean(x: Tensor) -> float:
            """Over the answers that count, on all processes."""
            sums = torch.stack([(x.double() * counts).sum(), counts.sum().double()])
            total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
            return total / max(count, 1)

        rows = zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)
        answers = [candidate(self.processing_class, ids[answer_mask].tolist(), 0.0) for ids, answer_mask in rows]

        def figures_of(figure: Callable[[Candidate], float]) -> Tensor:
            return torch.tensor([figure(answer) for answer in answers], device=kl.device)

        tokens = mask.sum(dim=1).clamp(min=1)
        variance_share = mathematics.explained_variance(*map(self._everywhere, (values, returns, mask)))
        row = RolloutFigures(
            scores=mean(scores),
            length=mean(figures_of(lambda answer: answer.num_tokens)),
            kl=mean(kl),
            entropy=mean((entropy * mask).sum(dim=1) / tokens),
            eos_rate=mean(figures_of(lambda answer: answer.finished)),
            repetition=mean(figures_of(lambda answer: repetition([answer.text]))),
            explained_variance=None if math.isnan(variance_share) else variance_share,  # JSON has no NaN
        )
        self.history.append(row)
        for figure in ("scores", "kl", "entropy"):
            self._note(f"objective/{figure}", getattr(row, figure))
        self._note("objective/non_score_reward", -self.kl_coef * row.kl)
        self._note("objective/rlhf_reward", row.scores - self.kl_coef * row.kl)
        self._note("objective/kl_coef", self.kl_coef)
        self._note("val/explained_variance", variance_share)
        self._note("val/eos_rate", row.eos_rate)
        if self.accelerator.is_main_process:
            self._show([row["prompt"] for row in inputs], answers, scores, kl)

    def _show(self, prompts: list[Any], answers: list[Candidate], scores: Tensor, kl: Tensor) -> None:
        figures = zip(prompts, answers, scores.tolist(), kl.tolist(), strict=True)
        samples = [
            RolloutSample(
                step=self.state.global_step,
                prompt=prompt,
                completion=answer.text,
                reasoning=answer.reasoning,
                score=round(score, 4),
                kl=round(nats, 4),
                total=round(score - self.kl_coef * nats, 4),
                rewards={name: _or_none(values[i]) for name, values in self.rewards.parts.items()},
            )
            for i, (prompt, answer, score, nats) in enumerate(islice(figures, _SAMPLES_PER_ROLLOUT))
        ]
        append_rows(self.stage.dir / SAMPLES, samples)


# ---- Small ------------------------------------------------------------------------------------------------------


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
