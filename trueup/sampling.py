"""Sampling answers in batches.

What a prompt's k-th answer will be depends on the policy, the prompt, k and the seed alone, and not on the batch size,
the order of prompts or the number of processes: each answer has its own stream of uniform numbers, and a token is the
inverse of the cumulative distribution at the next of them. Two policies sampled with one seed therefore share their
random numbers, which makes a comparison sharper, and a policy that did not change answers alike.

Faster than `generate` on a CPU (benchmarks/sampling.py): a prompt is read once for all of its K answers, and rows that
are finished leave the batch.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from trueup import tensors
from trueup.chat import answer_text, encode_prompt
from trueup.config import ModelConfig
from trueup.console import exit_with_parent
from trueup.models import Loaded, SavedPolicy, place
from trueup.records import Candidate, Message, prompt_id

_SHRINK_BELOW = 0.8
"""Rows are dropped from the cache once fewer than this share of them are unfinished; each drop copies the cache."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn. Temperature 0 is greedy: the likeliest token, whatever the other keys say."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def provenance(self) -> dict[str, Any]:
        return asdict(self)


def sample(
    policy: Loaded, prompts: Sequence[Sequence[Message]], decoding: Decoding, num_samples: int, batch_size: int
) -> list[list[Candidate]]:
    """`num_samples` answers to each prompt, in the order of `prompts`."""
    answers: list[list[Candidate]] = [[] for _ in prompts]
    for batch in _batches(prompts, num_samples, batch_size):
        for i, candidates in _answer(policy, [(i, prompts[i]) for i in batch], decoding, num_samples):
            answers[i] = candidates
    return answers


def sample_saved(
    saved: SavedPolicy,
    config: ModelConfig,
    prompts: Sequence[Sequence[Message]],
    decoding: Decoding,
    num_samples: int,
    batch_size: int,
    num_workers: int = 1,
) -> Iterator[list[tuple[int, list[Candidate]]]]:
    """As `sample`, from a saved policy and batch by batch: (index into `prompts`, answers), in any order.

    On a CPU `num_workers` processes share the prompts, each with its share of the cores: small matrix products use
    several cores badly (benchmarks/sampling.py).
    """
    batches = [[(i, prompts[i]) for i in batch] for batch in _batches(prompts, num_samples, batch_size)]
    workers = min(num_workers, len(batches))
    if workers <= 1 or place(config).device.type != "cpu":
        policy = saved.load(config)
        for batch in batches:
            yield _answer(policy, batch, decoding, num_samples)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (saved, config, threads))
    with pool:
        try:
            for future in as_completed([pool.submit(_work, batch, decoding, num_samples) for batch in batches]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker_policy: Loaded | None = None


def _start_worker(saved: SavedPolicy, config: ModelConfig, threads: int) -> None:
    global _worker_policy
    exit_with_parent()
    torch.set_num_threads(threads)
    _worker_policy = saved.load(config)


def _work(batch: list[tuple[int, Sequence[Message]]], decoding: Decoding, num_samples: int) -> Any:
    assert _worker_policy is not None
    return _answer(_worker_policy, batch, decoding, num_samples)


def _batches(prompts: Sequence[Sequence[Message]], num_samples: int, batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, longest first: least padding, and memory peaks at once if it must."""
    order = sorted(range(len(prompts)), key=lambda i: -sum(len(message.content) for message in prompts[i]))
    per_batch = max(1, batch_size // num_samples)
    return [order[start : start + per_batch] for start in range(0, len(order), per_batch)]


@torch.inference_mode()
def _answer(
    policy: Loaded, batch: list[tuple[int, Sequence[Message]]], decoding: Decoding, num_samples: int
) -> list[tuple[int, list[Candidate]]]:
    encoded = [encode_prompt(policy.tokenizer, prompt) for _, prompt in batch]
    uniform = np.stack([noise(decoding, prompt, k) for _, prompt in batch for k in range(num_samples)])
    drawn = _sample_batch(policy, encoded, uniform, decoding, num_samples)
    rows = [candidate(policy, ids, logp) for ids, logp in drawn]
    return [(i, rows[n * num_samples : (n + 1) * num_samples]) for n, (i, _) in enumerate(batch)]


def noise(decoding: Decoding, prompt: Sequence[Message], k: int) -> np.ndarray:
    """The uniform numbers (T,) of a prompt's k-th answer."""
    key = hashlib.sha256(f"{decoding.seed}/{prompt_id(list(prompt))}/{k}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(decoding.max_new_tokens)


def candidate(policy: Loaded, ids: list[int], logp: float) -> Candidate:
    """What was sampled, as a row on disk: finished exactly if its last token is EOS."""
    finished = bool(ids) and ids[-1] == policy.tokenizer.eos_token_id
    return Candidate(text=answer_text(policy.tokenizer, ids), token_ids=ids, finished=finished, logp=logp)


def _sample_batch(
    policy: Loaded, prompts: list[list[int]], noise: np.ndarray, decoding: Decoding, num_samples: int
) -> list[tuple[list[int], float]]:
    """Token ids and log-probability of each of P * K answers; B = P * K rows at first, fewer as they finish."""
    model, device = policy.model, policy.placement.device
    uniform = torch.from_numpy(noise).to(device=device, dtype=torch.float32)  # (B, T)
    tokens, mask = tensors.pad_left(prompts, policy.tokenizer.pad_token_id)  # (P, S)
    tokens, mask = tokens.to(device), mask.to(device)
    cache = roomy_cache(model.config)
    past = as_argument(cache, model)
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=tensors.positions(mask),
        **past,
        use_cache=True,
        logits_to_keep=1,
    )
    logits = out.logits[:, -1].repeat_interleave(num_samples, dim=0)  # (B, V)
    cache.reorder_cache(torch.arange(len(tokens), device=device).repeat_interleave(num_samples))
    mask = mask.repeat_interleave(num_samples, dim=0)  # (B, S)
    position = mask.sum(dim=1, keepdim=True)  # (B, 1), of the next token

    ids: list[list[int]] = [[] for _ in range(len(uniform))]
    logps = torch.zeros(len(uniform), device=device)
    rows = torch.arange(len(uniform), device=device)  # which answer each row of the batch is
    alive = torch.ones(len(uniform), dtype=torch.bool, device=device)
    for step in range(decoding.max_new_tokens):
        drawn = draw(logits, uniform[rows, step], decoding)  # (B,)
        logps[rows] += tensors.token_logprobs(logits, drawn) * alive
        for row, token, is_alive in zip(rows.tolist(), drawn.tolist(), alive.tolist(), strict=True):
            if is_alive:
                ids[row].append(token)
        alive &= drawn != policy.tokenizer.eos_token_id
        if step + 1 == decoding.max_new_tokens or not alive.any():
            break
        if alive.float().mean() < _SHRINK_BELOW:
            keep = alive.nonzero().squeeze(1)
            cache.reorder_cache(keep)
            rows, drawn, mask, position = rows[keep], drawn[keep], mask[keep], position[keep]
            alive = alive[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(
            input_ids=drawn.unsqueeze(1),
            attention_mask=mask,
            position_ids=position,
            **past,
            use_cache=True,
        )
        logits, position = out.logits[:, -1], position + 1
    return list(zip(ids, logps.tolist(), strict=True))


def draw(logits: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    """One token a row, by inverting the cumulative distribution.

    logits   (B, V)
    uniform  (B,) in [0, 1)
    returns  (B,) int64
    """
    if decoding.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / decoding.temperature
    if decoding.top_k or decoding.top_p < 1:
        # Likeliest first; where tokens fall in [0, 1) is then alike for two policies that are alike.
        logits, tokens = logits.topk(min(decoding.top_k or logits.size(-1), logits.size(-1)), dim=-1)
    else:
        tokens = None
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    if decoding.top_p < 1:
        # The smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al. 2020, arXiv:1904.09751)
        kept = (cumulative < decoding.top_p).sum(dim=-1, keepdim=True)
        total = cumulative.gather(-1, kept.clamp(max=cumulative.size(-1) - 1))
    else:
        total = cumulative[:, -1:]
    # Below 1 in float32 too, or the draw would fall behind the last token that is kept.
    uniform = uniform.clamp(max=1 - 2**-24)
    index = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * total, right=True)
    index = index.clamp(max=cumulative.size(-1) - 1)
    return index.squeeze(-1) if tokens is None else tokens.gather(-1, index).squeeze(-1)


class _RoomyLayer(DynamicLayer):
    """A cache layer with room to grow. DynamicLayer copies the cache for every token: a third of all time on a CPU."""

    keys: Tensor
    values: Tensor
    _ROOM = 64  # tokens

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, both (B, heads, T, D), and return all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: dict[str, Tensor] = {}
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, held: Tensor, new: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        length = held.shape[-2] if held.numel() else 0
        total = length + new.shape[-2]
        # Selecting or repeating rows replaced what is held, so the buffer is no longer what it is a view of.
        if buffer is None or held.data_ptr() != buffer.data_ptr() or total > buffer.shape[-2]:
            buffer = new.new_empty(*new.shape[:-2], total + self._ROOM, new.shape[-1])
            if length:
                buffer[..., :length, :] = held
            self._buffers[name] = buffer
        buffer[..., length:total, :] = new
        return buffer[..., :total, :]


def as_argument(cache: DynamicCache, model: Any) -> dict[str, DynamicCache]:
    """The cache under the name that the model's forward has for it.

    transformers calls it `cache` since some release after 5.17, and understands `past_key_values` until 5.40.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes = inspect.signature(type(model).forward).parameters
    return {"cache" if "cache" in takes else "past_key_values": cache}


def roomy_cache(config: Any) -> DynamicCache:
    """A cache for the model, with roomy layers wherever it has plain ones (not for sliding windows)."""
    cache = DynamicCache(config=config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def reads_in_parts(config: Any) -> bool:
    """Whether a text can be read on from a cache several tokens at once. A state that is carried from token to token
    (Mamba, LFM2) goes on by one token, and begins anew with more."""
    return not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=config).layers)


# ---- Scoring ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def completion_logps(
    policy: Loaded, prompts: Sequence[Sequence[Message]], completions: Sequence[Sequence[int]], batch_size: int = 16
) -> list[float]:
    """log pi(completion | prompt) in nats, summed over the completion's tokens, at temperature 1."""
    encoded = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    logps = [0.0] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]) - len(completions[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        logits, tokens, scored = _read_completions(policy, [encoded[i] for i in batch], [completions[i] for i in batch])
        per_token = torch.zeros(scored.shape, device=tokens.device)
        per_token[scored] = tensors.token_logprobs(logits, tokens)
        for row, i in enumerate(batch):
            logps[i] = per_token[row].sum().item()
    return logps


@torch.inference_mode()
def completion_kls(
    policy: Loaded,
    reference: Loaded,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[Sequence[int]],
    batch_size: int = 4,
) -> list[list[float]]:
    """KL(policy || reference) in nats at each token of each completion, over all that could have stood there, at
    temperature 1.

    batch_size  small, since two distributions over the vocabulary are held of each token
    """
    encoded = [[encode_prompt(side.tokenizer, prompt) for prompt in prompts] for side in (policy, reference)]
    kls: list[list[float]] = [[] for _ in completions]
    order = sorted(range(len(completions)), key=lambda i: -len(encoded[0][i]) - len(completions[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        answers = [completions[i] for i in batch]
        logits, other = (
            _read_completions(side, [texts[i] for i in batch], answers)[0]
            for side, texts in zip((policy, reference), encoded, strict=True)
        )
        per_token = iter(tensors.kl(logits, other.to(logits.device)).tolist())
        for i, answer in zip(batch, answers, strict=True):
            kls[i] = [next(per_token) for _ in answer]
    return kls


def _read_completions(
    policy: Loaded, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The distributions that the completions' tokens were drawn from, one completion after the other.

    returns  logits (N, V) of all N tokens, the tokens (N,), and where they stand (B, T - 1)
    """
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    tokens, mask = tensors.pad_right(rows, policy.tokenizer.pad_token_id)
    tokens, mask = tokens.to(policy.placement.device), mask.to(policy.placement.device)
    scored = mask.clone()  # (B, T), True on completion tokens
    for row, prompt in enumerate(prompts):
        scored[row, : len(prompt)] = False
    scored = scored[:, 1:]
    read = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
    if _head_is_plain(policy.model):
        # Only the positions that carry a completion token go through the head, which is a third of a small model.
        hidden = policy.model.base_model(**read).last_hidden_state
        logits = policy.model.get_output_embeddings()(hidden[:, :-1][scored])
    else:
        logits = policy.model(**read).logits[:, :-1][scored]
    return logits, tokens[:, 1:][scored], scored


def _head_is_plain(model: Any) -> bool:
    """Whether logits are the head's product alone. Gemma 2 caps them; Granite, Cohere and Falcon-H1 scale them."""
    config = model.config.get_text_config()
    own = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    return all(getattr(config, key, None) in (None, 1) for key in own)


@torch.inference_mode()
def score(
    reward_model: Loaded,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[Sequence[int]],
    batch_size: int = 32,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """The reward model's score of each completion, read at its last token; of an empty one that was not finished, at
    the prompt's last, as it is trained.

    A prompt is read once for all of its completions where the architecture can, and completions of like length go
    through together.
    """
    in_parts = reads_in_parts(reward_model.model.config)
    encoded = [tuple(encode_prompt(reward_model.tokenizer, prompt)) for prompt in prompts]
    asked: dict[tuple[int, ...], list[int]] = {}  # the completions of each distinct prompt
    for i, prompt in enumerate(encoded):
        asked.setdefault(prompt, []).append(i)
    scores, done = [0.0] * len(encoded), 0
    order = sorted(asked, key=len, reverse=True)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        read = _read_prompts(reward_model, chunk) if in_parts else None
        which = {i: row for row, prompt in enumerate(chunk) for i in asked[prompt]}
        by_length = sorted(which, key=lambda i: -len(completions[i]))
        for first in range(0, len(by_length), batch_size):
            batch = by_length[first : first + batch_size]
            said = [completions[i] for i in batch]
            if read and said[-1]:  # behind an empty answer, the shortest, there is nothing to read on
                values = _score_batch(reward_model, read, [which[i] for i in batch], said)
            else:
                values = _score_whole(reward_model, [encoded[i] for i in batch], said)
            for i, value in zip(batch, values.tolist(), strict=True):
                scores[i] = value
            done += len(batch)
            on_progress(done)
    return scores


def _read_prompts(reward_model: Loaded, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor]:
    """The cache of P prompts and their mask (P, S)."""
    device = reward_model.placement.device
    tokens, mask = (tensor.to(device) for tensor in tensors.pad_left(prompts, reward_model.tokenizer.pad_token_id))
    cache, decoder = roomy_cache(reward_model.model.config), reward_model.model.base_model
    decoder(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=tensors.positions(mask),
        **as_argument(cache, decoder),
        use_cache=True,
    )
    return cache, mask


def _score_batch(
    reward_model: Loaded, read: tuple[DynamicCache, Tensor], which: Sequence[int], completions: Sequence[Sequence[int]]
) -> Tensor:
    """Scores (B,) of B completions; `which` of the prompts that were read each of them answers."""
    model, device = reward_model.model, reward_model.placement.device
    rows = torch.tensor(which, device=device)  # (B,)
    cache = copy.deepcopy(read[0])
    cache.reorder_cache(rows)
    tokens, answered = (
        tensor.to(device) for tensor in tensors.pad_right(completions, reward_model.tokenizer.pad_token_id)
    )  # (B, T)
    mask = torch.cat([read[1][rows], answered], dim=1)  # (B, S + T)
    hidden = model.base_model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=tensors.positions(mask)[:, -tokens.size(1) :],
        **as_argument(cache, model.base_model),
        use_cache=True,
    ).last_hidden_state
    # transformers' own head looks for the last token that is not padding by its id; we know where it is.
    last = hidden[torch.arange(len(tokens), device=device), answered.sum(dim=1) - 1]  # (B, H)
    return model.score(last).squeeze(-1).float()


def _score_whole(
    reward_model: Loaded, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> Tensor:
    """Scores (B,) of B completions, each read with its prompt from the first token on."""
    model, device = reward_model.model, reward_model.placement.device
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    tokens, mask = (tensor.to(device) for tensor in tensors.pad_right(rows, reward_model.tokenizer.pad_token_id))
    hidden = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(rows), device=device), mask.sum(dim=1) - 1]  # (B, H)
    return model.score(last).squeeze(-1).float()
