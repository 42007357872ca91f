"""Sampling answers in batches.

A prompt's k-th answer depends on the policy, the prompt, k and the seed alone, and not on the batch size, the order of
prompts or the number of processes: each answer has its own stream of uniform numbers, and a token is the inverse of the
cumulative distribution at the next of them. Two policies sampled with one seed therefore share their random numbers,
which makes a comparison sharper, and a policy that did not change gives the same answers.

It is faster than `generate` on a CPU (benchmarks/sampling.py): a prompt is read once for all of its K answers, and rows
that are finished leave the batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueup.artifacts.reports import Decoding as Decoding
from trueup.console import exit_with_parent, progress
from trueup.data.containers.appended import append_rows, read_appended
from trueup.data.records import Candidate, Message, Row, prompt_id
from trueup.files import PARTIAL
from trueup.models import tensors
from trueup.models.cache import as_argument, roomy_cache
from trueup.models.chat import encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.course import Course, most_tokens
from trueup.models.loading import Loaded, SavedPolicy
from trueup.models.placement import place

_UNFINISHED = f".answers{PARTIAL}"
"""Ending of the file with what an unfinished sampling has."""
_SHRINK_BELOW = 0.8
"""Rows are dropped from the cache once fewer than this share of them are unfinished; each drop copies the cache."""


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
    in_turn: bool = False,
) -> Iterator[list[tuple[int, list[Candidate]]]]:
    """Sample as `sample` does, from a saved policy and batch by batch: (index into `prompts`, answers), in any order.

    On a CPU `num_workers` processes share the prompts, each with its share of the cores: small matrix products use
    several cores badly (benchmarks/sampling.py).

    in_turn  somebody waits for the answers: the prompts are taken in their order, and the first batches are small
    """
    divided = (_batches_in_turn if in_turn else _batches)(prompts, num_samples, batch_size)
    batches = [[(i, prompts[i]) for i in batch] for batch in divided]
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
            alone = 1 if in_turn else 0  # the other processes start behind the first batch, and do not slow it down
            for part in (batches[:alone], batches[alone:]):
                for future in as_completed([pool.submit(_work, batch, decoding, num_samples) for batch in part]):
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _PromptAnswers(Row):
    """The answers to one prompt, as they are kept while a policy is sampled."""

    row: int
    """Which of the prompts."""
    candidates: list[Candidate]


def sample_resumed(
    folder: Path,
    name: str,
    saved: SavedPolicy,
    config: ModelConfig,
    prompts: Sequence[Sequence[Message]],
    decoding: Decoding,
    num_samples: int,
    batch_size: int,
    num_workers: int = 1,
) -> list[list[Candidate]]:
    """Sample as `sample_saved` does, to the end. What an interrupted run had sampled of these very prompts under this
    name is in the folder and kept, until `forget_unfinished`."""
    file = folder / f"{name}{_UNFINISHED}"
    answers: list[list[Candidate]] = [[] for _ in prompts]
    for row in read_appended(file, _PromptAnswers):
        answers[row.row] = row.candidates
    todo = [i for i, candidates in enumerate(answers) if not candidates]
    for batch in sample_saved(
        saved, config, [prompts[i] for i in todo], decoding, num_samples, batch_size, num_workers
    ):
        for n, candidates in batch:
            answers[todo[n]] = candidates
        append_rows(file, [_PromptAnswers(row=todo[n], candidates=candidates) for n, candidates in batch])
        progress(sum(map(bool, answers)), len(prompts))
    return answers


def forget_unfinished(folder: Path) -> None:
    """Remove what `sample_resumed` kept there for the case that it is interrupted."""
    for partial in folder.glob(f"*{_UNFINISHED}"):
        partial.unlink()


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
    """Indices in batches of like length, for little padding. The longest come first, so that memory peaks at once."""
    order = sorted(range(len(prompts)), key=lambda i: -sum(len(message.content) for message in prompts[i]))
    per_batch = max(1, batch_size // num_samples)
    return [order[start : start + per_batch] for start in range(0, len(order), per_batch)]


def _batches_in_turn(prompts: Sequence[Sequence[Message]], num_samples: int, batch_size: int) -> list[list[int]]:
    """Indices in their order. The first batch is one prompt, and each is twice as large as the last one, up to the
    batch size."""
    batches, start, size = list[list[int]](), 0, 1
    while start < len(prompts):
        batches.append(list(range(start, min(start + size, len(prompts)))))
        start, size = start + size, min(2 * size, max(1, batch_size // num_samples))
    return batches


@torch.inference_mode()
def _answer(
    policy: Loaded, batch: list[tuple[int, Sequence[Message]]], decoding: Decoding, num_samples: int
) -> list[tuple[int, list[Candidate]]]:
    encoded = [encode_prompt(policy.tokenizer, prompt) for _, prompt in batch]
    count = most_tokens(policy.tokenizer, decoding)
    uniform = np.stack([noise(decoding, prompt, k, count) for _, prompt in batch for k in range(num_samples)])
    rows = _sample_batch(policy, encoded, uniform, decoding, num_samples)
    return [(i, rows[n * num_samples : (n + 1) * num_samples]) for n, (i, _) in enumerate(batch)]


def noise(decoding: Decoding, prompt: Sequence[Message], k: int, count: int | None = None) -> np.ndarray:
    """The uniform numbers (T,) of a prompt's k-th answer: the first `count`, or one for each of `max_new_tokens`."""
    key = hashlib.sha256(f"{decoding.seed}/{prompt_id(list(prompt))}/{k}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(
        decoding.max_new_tokens if count is None else count
    )


def _sample_batch(
    policy: Loaded, prompts: list[list[int]], noise: np.ndarray, decoding: Decoding, num_samples: int
) -> list[Candidate]:
    """P * K answers; B = P * K rows at first, fewer as they finish."""
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

    answers = [Course(policy.tokenizer, decoding) for _ in range(len(uniform))]
    logps = torch.zeros(len(uniform), device=device)
    rows = torch.arange(len(uniform), device=device)  # which answer each row of the batch is
    alive = torch.ones(len(uniform), dtype=torch.bool, device=device)
    for step in range(uniform.size(1)):
        drawn = draw(logits, uniform[rows, step], decoding).tolist()
        batch = [answers[row] for row in rows.tolist()]
        next_tokens = [token if one.ended else one.take(token) for one, token in zip(batch, drawn, strict=True)]
        next_ids = torch.tensor(next_tokens, device=device)  # (B,)
        logps[rows] += tensors.token_logprobs(logits, next_ids) * alive
        alive = torch.tensor([not one.ended for one in batch], device=device)
        if not alive.any():
            break
        if alive.float().mean() < _SHRINK_BELOW:
            keep = alive.nonzero().squeeze(1)
            cache.reorder_cache(keep)
            rows, next_ids, mask, position = rows[keep], next_ids[keep], mask[keep], position[keep]
            alive = alive[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        out = model(input_ids=next_ids.unsqueeze(1), attention_mask=mask, position_ids=position, **past, use_cache=True)
        logits, position = out.logits[:, -1], position + 1
    return [one.candidate(logp) for one, logp in zip(answers, logps.tolist(), strict=True)]


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
        # Likeliest first, so that similar policies have their tokens in similar places of [0, 1).
        logits, tokens = logits.topk(min(decoding.top_k or logits.size(-1), logits.size(-1)), dim=-1)
    else:
        tokens = None
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    if decoding.top_p < 1:
        # The smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al. 2020, arXiv:1904.09751)
        count = (cumulative < decoding.top_p).sum(dim=-1, keepdim=True)
        total = cumulative.gather(-1, count.clamp(max=cumulative.size(-1) - 1))
    else:
        total = cumulative[:, -1:]
    # Below 1 in float32 too, or the draw would fall behind the last token.
    uniform = uniform.clamp(max=1 - 2**-24)
    index = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * total, right=True)
    index = index.clamp(max=cumulative.size(-1) - 1)
    return index.squeeze(-1) if tokens is None else tokens.gather(-1, index).squeeze(-1)
