"""Sampling: the same answers for any batch and any number of processes, and the distribution that was asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from trueup.data.records import Message
from trueup.models import loading, sampling
from trueup.models.chat import encode_completion, encode_prompt, sampled_ids
from trueup.models.config import ModelConfig
from trueup.models.loading import Loaded, SavedPolicy
from trueup.models.sampling import Decoding, draw, sample, sample_saved
from trueup.models.scoring import completion_kls, completion_logps, score

CPU = ModelConfig(device="cpu")
PROMPTS = [
    [Message(role="user", content=text)]
    for text in ["Say red.", "Why?", "Tell me about all the grey things of old.", "A b c"]
]
DECODING = Decoding(max_new_tokens=20, seed=3)


@pytest.fixture(scope="module")
def directory(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy that has opinions, and ends about one answer in ten at each token."""
    base = loading.load_base(ModelConfig(name=str(bases("llama")), chat_template="plain", device="cpu"))
    model: Any = base.model
    torch.manual_seed(1)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.4)
        model.config.tie_word_embeddings = False
        # A direction that every token shares, and that EOS is read from.
        model.model.embed_tokens.weight.normal_(0, 0.5)[:, 0] = 4.0
        for block in model.model.layers:
            block.self_attn.o_proj.weight *= 0.3
            block.mlp.down_proj.weight *= 0.3
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[base.tokenizer.eos_token_id] *= 0
        model.lm_head.weight[base.tokenizer.eos_token_id, 0] = 1.5
    to = tmp_path_factory.mktemp("policy")
    loading.save(base, to)
    return to


@pytest.fixture(scope="module")
def policy(directory: Path) -> Loaded:
    loaded = loading.load_policy(directory, CPU)
    loaded.model.eval()
    return loaded


@torch.inference_mode()
def simple(policy: Loaded, prompt: list[Message], decoding: Decoding, k: int) -> tuple[list[int], float]:
    """One answer by the plainest loop: no batch, no cache, double precision, a walk along the distribution."""
    context, logp = encode_prompt(policy.tokenizer, prompt), 0.0
    ids: list[int] = []
    for uniform in sampling.noise(decoding, prompt, k):
        logits = policy.model(torch.tensor([context + ids])).logits[0, -1].double()
        probabilities = (logits / decoding.temperature).softmax(-1)
        tokens = list(range(len(probabilities)))
        if decoding.top_k or decoding.top_p < 1:
            tokens = sorted(tokens, key=lambda token: -probabilities[token].item())[: decoding.top_k or None]
        kept, mass = [], 0.0
        share = sum(probabilities[token].item() for token in tokens)
        for token in tokens:
            kept.append(token)
            mass += probabilities[token].item() / share
            if mass >= decoding.top_p:
                break
        reached, target = 0.0, uniform * mass
        for chosen in kept:
            reached += probabilities[chosen].item() / share
            if reached > target:
                break
        ids.append(chosen)
        logp += logits.log_softmax(-1)[chosen].item()
        if chosen == policy.tokenizer.eos_token_id:
            break
    return ids, logp


@pytest.mark.parametrize(
    "decoding",
    [
        DECODING,
        replace(DECODING, top_k=20),
        replace(DECODING, top_p=0.8),
        replace(DECODING, temperature=0.5, top_k=50, top_p=0.9),
    ],
    ids=["all", "top_k", "top_p", "both"],
)
def test_answers_are_those_of_a_plain_loop_without_batch_or_cache(policy: Loaded, decoding: Decoding) -> None:
    answers = sample(policy, PROMPTS, decoding, num_samples=4, batch_size=16)
    for prompt, candidates in zip(PROMPTS, answers, strict=True):
        for k, candidate in enumerate(candidates):
            ids, logp = simple(policy, prompt, decoding, k)
            assert candidate.token_ids == ids
            assert candidate.logp == pytest.approx(logp, abs=1e-3)


def test_answers_do_not_depend_on_the_batch_the_order_or_what_else_is_asked(policy: Loaded) -> None:
    whole = sample(policy, PROMPTS, DECODING, num_samples=3, batch_size=64)
    for batch_size in (1, 3, 6):
        again = sample(policy, PROMPTS, DECODING, num_samples=3, batch_size=batch_size)
        assert [[c.token_ids for c in row] for row in again] == [[c.token_ids for c in row] for row in whole]
    backwards = sample(policy, PROMPTS[::-1], DECODING, num_samples=3, batch_size=64)
    assert [[c.token_ids for c in row] for row in backwards[::-1]] == [[c.token_ids for c in row] for row in whole]
    fewer = sample(policy, PROMPTS[1:2], DECODING, num_samples=2, batch_size=64)
    assert [c.token_ids for c in fewer[0]] == [c.token_ids for c in whole[1][:2]]


def test_answers_do_not_depend_on_the_number_of_processes(directory: Path, policy: Loaded) -> None:
    alone = sample(policy, PROMPTS, DECODING, num_samples=2, batch_size=2)
    shared = dict(
        row
        for batch in sample_saved(SavedPolicy(directory), CPU, PROMPTS, DECODING, 2, 2, num_workers=2)
        for row in batch
    )
    assert [shared[i] for i in range(len(PROMPTS))] == alone


def test_in_turn_the_first_prompts_come_first_and_alone_and_the_answers_are_the_same(
    directory: Path, policy: Loaded
) -> None:
    alone = sample(policy, PROMPTS, DECODING, num_samples=2, batch_size=8)
    batches = list(sample_saved(SavedPolicy(directory), CPU, PROMPTS, DECODING, 2, batch_size=8, in_turn=True))
    assert [[i for i, _ in batch] for batch in batches] == [[0], [1, 2], [3]]
    for batch in batches:
        for i, candidates in batch:
            assert [c.token_ids for c in candidates] == [c.token_ids for c in alone[i]]


def test_an_answer_depends_on_the_seed_on_k_and_on_nothing_that_happened_before(policy: Loaded) -> None:
    first = sample(policy, PROMPTS, DECODING, num_samples=4, batch_size=64)
    torch.manual_seed(99)
    assert sample(policy, PROMPTS, DECODING, num_samples=4, batch_size=64) == first
    assert all(len({tuple(candidate.token_ids) for candidate in row}) > 1 for row in first), "the K answers differ"
    other = sample(policy, PROMPTS, replace(DECODING, seed=4), num_samples=4, batch_size=64)
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_an_answer_is_finished_exactly_if_its_last_token_is_eos_which_its_text_leaves_out(policy: Loaded) -> None:
    candidates = [c for row in sample(policy, PROMPTS, DECODING, num_samples=8, batch_size=64) for c in row]
    eos = policy.tokenizer.eos_token_id
    assert {c.finished for c in candidates} == {True, False}, "both must occur for this test to say anything"
    for c in candidates:
        assert c.finished == (c.token_ids[-1] == eos) and c.token_ids.count(eos) == int(c.finished)
        assert c.finished or len(c.token_ids) == DECODING.max_new_tokens
        assert sampled_ids(policy.tokenizer, c.text, c.finished, c.token_ids) == c.token_ids, "a record of the text"
        assert "</s>" not in c.text
    assert any(c.text != c.text.strip() for c in candidates), "nothing is stripped"


def test_the_likeliest_token_alone_is_what_transformers_generates_greedily(policy: Loaded) -> None:
    answers = sample(policy, PROMPTS, replace(DECODING, top_k=1), num_samples=1, batch_size=64)
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([encode_prompt(policy.tokenizer, prompt)])
        mask = torch.ones_like(ids)
        made: Any = policy.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=20)
        assert answer.token_ids == made[0, ids.size(1) :].tolist()


# ---- The distribution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        (Decoding(1), [0.4, 0.3, 0.2, 0.1]),
        (Decoding(1, temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Decoding(1, top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Decoding(1, top_p=0.6), [4 / 7, 3 / 7, 0, 0]),
        (Decoding(1, top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Decoding(1, top_k=3, top_p=0.5), [4 / 7, 3 / 7, 0, 0]),
        (Decoding(1, top_k=9), [0.4, 0.3, 0.2, 0.1]),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_that_were_asked_for(decoding: Decoding, expected: list[float]) -> None:
    order = [2, 0, 3, 1]  # where each probability stands in the vocabulary
    logits = torch.full((4,), -math.inf)
    logits[order] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000)).float()
    drawn = draw(logits.expand(20_000, 4), uniform, decoding)
    counts = np.array([(drawn == token).sum().item() for token in order])
    possible = np.array(expected) > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], np.array(expected)[possible] * 20_000).pvalue > 0.001


@pytest.mark.parametrize("decoding", [Decoding(1), Decoding(1, top_k=2), Decoding(1, top_p=0.6)], ids=str)
def test_the_ends_of_the_interval_draw_a_token_that_can_be_drawn(decoding: Decoding) -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.0]]).log()
    ends = torch.tensor([0.0, 1 - 2**-24, 1.0])  # float32 rounds a double just below 1 to 1
    drawn = draw(logits.expand(3, 5), ends, decoding).tolist()
    last = 3 if not decoding.top_k and decoding.top_p == 1 else 1
    assert drawn == [0, last, last]


# ---- Scoring ----------------------------------------------------------------------------------------------------


def test_the_log_probability_of_an_answer_is_the_same_when_it_is_scored_as_when_it_was_sampled(policy: Loaded) -> None:
    answers = sample(policy, PROMPTS, replace(DECODING, top_k=30, temperature=0.8), num_samples=3, batch_size=64)
    prompts = [prompt for prompt, row in zip(PROMPTS, answers, strict=True) for _ in row]
    candidates = [candidate for row in answers for candidate in row]
    completions = [candidate.token_ids for candidate in candidates]
    sampled = pytest.approx([candidate.logp for candidate in candidates], abs=1e-3)
    assert completion_logps(policy, prompts, completions, batch_size=5) == sampled
    assert completion_logps(policy, prompts, completions, batch_size=1) == sampled
    empty = completion_logps(policy, PROMPTS[:2], [[], completions[3]])
    assert empty == [0.0, pytest.approx(candidates[3].logp, abs=1e-3)]


def test_the_kl_of_a_token_is_that_of_the_two_whole_distributions_in_any_batch(policy: Loaded) -> None:
    other = replace(policy, model=copy.deepcopy(policy.model))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    answers = [row[0].token_ids for row in sample(policy, PROMPTS, DECODING, num_samples=1, batch_size=64)]
    answers[1] = []
    kls = completion_kls(policy, other, PROMPTS, answers, batch_size=3)
    assert [len(row) for row in kls] == [len(ids) for ids in answers] and min(map(min, filter(None, kls))) > 0
    for prompt, ids, row in zip(PROMPTS, answers, kls, strict=True):
        read = torch.tensor([[*encode_prompt(policy.tokenizer, prompt), *ids]])
        p, q = (side.model(read).logits[0, -len(ids) - 1 : -1].double().log_softmax(-1) for side in (policy, other))
        assert row == pytest.approx((p.exp() * (p - q)).sum(-1).tolist() if ids else [], abs=1e-4)
    assert completion_kls(policy, policy, PROMPTS, answers) == [[0.0] * len(ids) for ids in answers]


def test_the_kl_of_whole_distributions_has_the_mean_of_the_sampled_ratio_and_a_fraction_of_its_variance(
    policy: Loaded,
) -> None:
    other = replace(policy, model=copy.deepcopy(policy.model))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    decoding = Decoding(max_new_tokens=6, seed=3)
    drawn = sample(policy, PROMPTS[:1], decoding, num_samples=300, batch_size=300)[0]
    answers, prompts = [candidate.token_ids for candidate in drawn], PROMPTS[:1] * 300
    exact = np.array([sum(row) for row in completion_kls(policy, other, prompts, answers, batch_size=50)])
    ratios = np.array([c.logp for c in drawn]) - completion_logps(other, prompts, answers, batch_size=50)
    error = math.sqrt((exact.var() + ratios.var()) / 300)
    assert abs(exact.mean() - ratios.mean()) < 4 * error
    assert exact.min() >= 0 > ratios.min() and exact.var() < 0.5 * ratios.var()


def test_a_family_that_scales_its_logits_is_scored_with_its_scale(policy: Loaded) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model: Any = GraniteForCausalLM(
        GraniteConfig(vocab_size=300, logits_scaling=0.05, pad_token_id=0, eos_token_id=2, **sizes)
    )
    granite = replace(policy, model=model.eval())
    answers = [row[0] for row in sample(granite, PROMPTS, DECODING, num_samples=1, batch_size=64)]
    logps = completion_logps(granite, PROMPTS, [answer.token_ids for answer in answers])
    assert logps == pytest.approx([answer.logp for answer in answers], abs=1e-2)


@pytest.fixture(scope="module")
def reward_model(directory: Path) -> Loaded:
    torch.manual_seed(0)
    loaded = loading.load_reward_model(directory, CPU, fresh_head=True)
    loaded.model.eval()
    return loaded


def test_a_score_is_read_at_the_last_token_however_much_padding_stands_behind_it(reward_model: Loaded) -> None:
    texts = ["It is red.", "No", "It is blue and grey and green and gold."]
    completions = [encode_completion(reward_model.tokenizer, text) for text in texts]
    together = score(reward_model, [PROMPTS[0]] * 3, completions, batch_size=3)
    assert together == pytest.approx(score(reward_model, [PROMPTS[0]] * 3, completions, batch_size=1), abs=1e-5)
    assert len(set(together)) == 3
    ids = torch.tensor([encode_prompt(reward_model.tokenizer, PROMPTS[0]) + completions[0]])
    assert together[0] == pytest.approx(reward_model.model(ids).logits.item(), abs=1e-5), "the model's own head agrees"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_an_empty_answer_that_was_not_finished_is_scored_at_the_end_of_its_prompt(
    reward_model: Loaded, batch_size: int
) -> None:
    """Beside longer answers, beside another prompt, and alone: as the model's own head reads it."""
    written = encode_completion(reward_model.tokenizer, "It is red and gold.")
    asked = [(PROMPTS[0], []), (PROMPTS[1], []), (PROMPTS[0], written), (PROMPTS[0], written[:1]), (PROMPTS[1], [])]
    prompts, completions = [prompt for prompt, _ in asked], [answer for _, answer in asked]
    found = score(reward_model, prompts, completions, batch_size=batch_size)
    alone = [
        reward_model.model(torch.tensor([encode_prompt(reward_model.tokenizer, prompt) + answer])).logits.item()
        for prompt, answer in asked
    ]
    assert found == pytest.approx(alone, abs=1e-5)
    assert score(reward_model, [PROMPTS[0]], [[]]) == pytest.approx(alone[:1], abs=1e-5)


def test_an_unfinished_answer_may_end_in_any_token_and_is_still_scored_there(reward_model: Loaded) -> None:
    pad = reward_model.tokenizer.pad_token_id
    with_pad_inside = [*encode_completion(reward_model.tokenizer, "It is", finished=False), pad]
    one, two = score(reward_model, [PROMPTS[0]] * 2, [with_pad_inside, with_pad_inside[:-1]])
    assert abs(one - two) > 1e-4, "the last token is known by its place, not by looking for padding"
