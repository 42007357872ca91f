"""The reference of an alignment on labelled answers: its log-probabilities, and whether training starts at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from trueup.console import say
from trueup.data.records import Message, Preference
from trueup.models import loading
from trueup.models.scoring import completion_logps
from trueup.runs import FinishedStage
from trueup.training.pairs import EncodedPair

Tokens = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt and an answer to it."""


def compute_reference_logps(
    policy: loading.Loaded, start: FinishedStage, pairs: list[Preference], rows: list[EncodedPair]
) -> list[tuple[float, float]]:
    """log pi_ref of the chosen and the rejected answer of each pair, in nats.

    start  the stage that made the policy, which is not trained yet

    Sampling wrote them down: an answer of these very tokens, sampled by this very policy in float32 as it is here, is
    not scored again. Where several policies answered one prompt, as in a further round, no pair names its sampler. In
    bf16 what is recorded does not count: there a text's log-probability hangs on the batch that it is read in, by
    tenths of a nat.
    """
    exact = policy.placement.dtype == torch.float32
    pair_logps = {
        i: (pair.chosen_logp, pair.rejected_logp)
        for i, pair in enumerate(pairs)
        if exact
        and pair.sampled_by == start.sha256
        and pair.sampler.get("dtype") == "float32"
        and (pair.chosen_token_ids, pair.rejected_token_ids) == (rows[i].chosen_ids, rows[i].rejected_ids)
        and None not in (pair.chosen_logp, pair.rejected_logp)
    }
    to_score = [i for i in range(len(rows)) if i not in pair_logps]
    counts = f"{len(pair_logps)} pairs known from sampling, {len(to_score)} to compute"
    say(f"{'reference':<12} log-probabilities of {counts}")
    if to_score:
        # Several annotators of one pair label the same two answers: each answer is read once.
        prompts = {
            (tuple(rows[i].prompt_ids), tuple(ids)): pairs[i].prompt
            for i in to_score
            for ids in (rows[i].chosen_ids, rows[i].rejected_ids)
        }
        logps = distinct_logps(policy, prompts)
        for i in to_score:
            prompt = tuple(rows[i].prompt_ids)
            pair_logps[i] = (logps[prompt, tuple(rows[i].chosen_ids)], logps[prompt, tuple(rows[i].rejected_ids)])
    return [pair_logps[i] for i in range(len(rows))]  # type: ignore[misc]


def distinct_logps(policy: loading.Loaded, prompts: Mapping[Tokens, list[Message]]) -> dict[Tokens, float]:
    """log pi in nats of each answer after its prompt.

    prompts  the prompt of each as messages
    """
    logps = completion_logps(policy, list(prompts.values()), [answer for _, answer in prompts])
    return dict(zip(prompts, logps, strict=True))


class StartsAtReference(TrainerCallback):
    """Stops a run whose policy is not the reference at step 0: margins and KL must be 0, and the loss what it is there.

    expected  the loss of a step with these logs as long as the policy is the reference; None where it is not known
    beta      what a nat counts in a margin. Margin and KL are held to nats, since how far the two models are apart has
              nothing to do with beta: it is 0.1 in some losses and 5 in others
    """

    def __init__(
        self, expected: Callable[[Mapping[str, float]], float | None], beta: float, rounded_weights: bool = False
    ):
        self.expected, self.beta, self.rounded_weights = expected, beta, rounded_weights

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        if state.global_step != 1 or "loss" not in (logs or {}):
            return
        # bf16 rounds each of some hundred log-probabilities; float32 agrees to five digits.
        tolerance, most_nats = (0.05, 0.5) if args.bf16 or self.rounded_weights else (1e-3, 1e-2)
        # A batch of ties has no margin, and DPO no estimate of the KL.
        margin, kl = abs(logs.get("rewards/margins", 0.0)) / self.beta, logs.get("kl", 0.0)
        loss, expected = logs["loss"] - loss_of_router(model, logs), self.expected(logs)
        figures = (
            f"loss {loss:.4f}{'' if expected is None else f' (expected {expected:.4f})'}, margin {margin:.4f} nats"
        )
        figures += f", KL {kl:.4f} nats" if "kl" in logs else ""
        far = expected is not None and abs(loss - expected) > tolerance * max(1, expected)
        if max(margin, kl) > most_nats or far:
            raise AssertionError(f"at step 0 policy and reference differ: {figures}")
        say(f"{'step 0':<12} {figures}: policy is reference")


def loss_of_router(model: Any, logs: dict[str, float]) -> float:
    """What a mixture of experts adds to the loss for the balance of its experts, which is no matter of preference."""
    settings = getattr(model, "config", None)
    weight = getattr(settings.get_text_config(), "router_aux_loss_coef", 0.0) if settings else 0.0
    return weight * logs.get("aux_loss", 0.0)
