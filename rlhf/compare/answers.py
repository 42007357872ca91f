"""The answers that are compared: P prompts, K answers of each policy, and what can be said of them without a judge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, compress
from pathlib import Path

import numpy as np

from rlhf.compare.config import CompareConfig
from trueup.artifacts.manifest import Finding
from trueup.artifacts.reports import OwnFigures
from trueup.data.records import Candidate, CandidateSet
from trueup.data.texts import distinct_n, mean_self_similarity, repetition
from trueup.models.course import drawn
from trueup.models.loading import Loaded, SavedPolicy
from trueup.models.sampling import Decoding, sample_resumed
from trueup.models.scoring import completion_kls
from trueup.statistics import intervals, win_rates

SFT, ALIGNED, BEST = "sft", "aligned", "best_of_n"

Answers = list[list[Candidate]]
"""P lists of K answers of one policy. The k-th answers of two sampled policies share their random numbers."""


@dataclass(frozen=True)
class ComparedCompletions:
    """The same prompts, answered by several policies."""

    rows: list[CandidateSet]
    """The prompts. Their candidates are the SFT policy's answers."""
    by_policy: dict[str, Answers]
    """In the order in which they are shown: the base model if asked for, the SFT policy, the aligned one, others."""

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        return combinations(self.by_policy, 2)

    def share_identical(self) -> float:
        """Share of the k-th answers in which the SFT and the aligned policy said the same, token by token."""
        both = zip(self.by_policy[SFT], self.by_policy[ALIGNED], strict=True)
        same = [r.token_ids == a.token_ids for rs, as_ in both for r, a in zip(rs, as_, strict=True)]
        return sum(same) / len(same)


@dataclass(frozen=True)
class Verdicts:
    """What a judge of pairs says of the SFT policy and the aligned one."""

    tables: list[np.ndarray]
    """P tables (K, K), or several on top of each other, (N, K, K), as `outcome_tables` lays them out; NaN where the
    judge was not asked or gave no verdict."""
    own: OwnFigures = field(default_factory=OwnFigures)
    findings: Sequence[Finding] = ()


def sample_policy(
    name: str,
    policy: SavedPolicy,
    rows: Sequence[CandidateSet],
    decoding: Decoding,
    num_samples: int,
    config: CompareConfig,
    folder: Path,
) -> Answers:
    """`num_samples` answers of a policy to each prompt. What an interrupted run had sampled is in `folder` and kept."""
    prompts = [row.prompt for row in rows]
    return sample_resumed(
        folder, name, policy, config.model, prompts, decoding, num_samples, config.batch_size, config.num_workers
    )


# ---- Best of n --------------------------------------------------------------------------------------------------


def best_of_others(answers: Answers, scores: Sequence[Sequence[float]]) -> Answers:
    """Best-of-n by a reward model, n = K - 1: in the k-th place the best of the prompt's answers but the k-th.

    answers  P lists of K answers, K >= 2
    scores   (P, K), the reward model's; an answer without one, NaN, is the last choice
    returns  P lists of K answers; the first of equals

    Leaving the k-th out makes the k-th places of this policy and of any other independent of each other, so that K
    answers serve both as what is chosen from and as what the choice is compared with. Source: best-of-n as a policy,
    Nakano et al. 2021, https://arxiv.org/abs/2112.09332, section 3.2.
    """

    def best(row: Sequence[Candidate], values: Sequence[float], without: int) -> Candidate:
        return row[max((k for k in range(len(row)) if k != without), key=lambda k: values[k])]

    ranked = [[-math.inf if math.isnan(value) else value for value in values] for values in scores]
    return [
        [best(row, values, k) for k in range(len(row))] for row, values in zip(answers, ranked, strict=True)
    ]  # fmt: skip


def kl_of_best(n: int) -> float:
    """KL of best-of-n to the policy that it chooses from, in nats per sequence: log n - (n - 1) / n.

    A bound from above, near the truth where hardly any answer would be drawn twice (Beirami et al. 2024,
    https://arxiv.org/abs/2401.01879). The distance is to the policy as it is sampled, with its temperature and top-k.
    """
    return math.log(n) - (n - 1) / n


# ---- Comparisons ------------------------------------------------------------------------------------------------

Scores = Sequence[Sequence[float]]
"""(P, K): a judge's scores of one policy's answers; NaN for an answer that the judge cannot read."""


def on_common_prompts(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """The scores, all NaN on a prompt of which the judge cannot read an answer of any policy.

    Without that answer alone, a policy would be judged by its shorter answers."""
    silent = {i for rows in scores.values() for i, row in enumerate(rows) if any(map(math.isnan, row))}
    return {
        policy: [[math.nan] * len(row) if i in silent else row for i, row in enumerate(rows)]
        for policy, rows in scores.items()
    }


def outcome_tables(a: str, b: str, scores_a: Scores, scores_b: Scores) -> list[np.ndarray]:
    """P tables (K, K): 1 where b's answer (column) scores higher than a's (row), 0.5 a tie, NaN where not compared.

    Of two sampled policies all answers are compared that were drawn apart (`win_rates.outcomes`). A best-of-n's k-th
    place knows all answers but the k-th, so it is compared with the k-th alone.
    """
    if BEST not in (a, b):
        return [win_rates.outcomes(of_a, of_b) for of_a, of_b in zip(scores_a, scores_b, strict=True)]
    tables = []
    for of_a, of_b in zip(scores_a, scores_b, strict=True):
        table = np.full((len(of_a), len(of_b)), np.nan)
        np.fill_diagonal(table, (np.sign(np.subtract(of_b, of_a)) + 1) / 2)
        tables.append(table)
    return tables


def length_differences(a: Answers, b: Answers) -> list[np.ndarray]:
    """P tables (K, K) of tokens of b's answer - tokens of a's, laid out as `outcome_tables`."""
    return [_tokens(of_b)[None, :] - _tokens(of_a)[:, None] for of_a, of_b in zip(a, b, strict=True)]


def _tokens(candidates: Sequence[Candidate]) -> np.ndarray:
    return np.array([candidate.num_tokens for candidate in candidates], dtype=float)


# ---- What an answer is like -------------------------------------------------------------------------------------


def describe(answers: Answers) -> dict[str, float]:
    """How one policy's answers are, whatever a judge says of them."""
    candidates = [candidate for row in answers for candidate in row]
    texts = [candidate.text for candidate in candidates]
    return {
        "length_tokens": sum(candidate.num_tokens for candidate in candidates) / len(candidates),
        "eos_rate": sum(candidate.finished for candidate in candidates) / len(candidates),
        "distinct_2": distinct_n(texts),
        "repetition": repetition(texts),
    }


def self_similarity(answers: Answers, confidence: float, seed: int) -> intervals.Interval:
    """How alike a policy's answers to one prompt are; it rises when alignment narrows the policy."""
    return mean_self_similarity([[candidate.text for candidate in row] for row in answers], confidence, seed)


# ---- KL ---------------------------------------------------------------------------------------------------------


TokenKLs = Sequence[Sequence[float]]
"""KL in nats at each drawn token of one answer to each of P prompts."""


def token_kls(policy: Loaded, reference: Loaded, rows: Sequence[CandidateSet], answers: Answers) -> list[list[float]]:
    """KL(policy || reference) of the next token at each token of the first answer to each prompt, by all tokens that
    could have stood there. Tokens that closed the reasoning by force were drawn by neither policy, and are left out.
    The prompts are the first of `rows` if fewer were answered."""
    prompts = [row.prompt for row, _ in zip(rows, answers, strict=False)]
    kls = completion_kls(policy, reference, prompts, [row[0].token_ids for row in answers])
    return [list(compress(kl, drawn(policy.tokenizer, row[0]))) for kl, row in zip(kls, answers, strict=True)]


def kl_per_sequence(kls: TokenKLs, confidence: float, seed: int) -> intervals.Interval:
    """KL(policy || reference) in nats per sequence: the mean over answers of what their tokens' add up to.

        KL(pi || pi_ref) = E_(y ~ pi) [ sum_t KL(pi(. | x, y_<t) || pi_ref(. | x, y_<t)) ]

    The same mean as that of log pi(y) - log pi_ref(y), with a fraction of its variance and never below 0: each token's
    log-ratio is replaced by its expectation given what stands before it (Rao-Blackwell; Amini et al. 2025,
    https://arxiv.org/abs/2504.10637). Exact in expectation for plain sampling at temperature 1. With top-k, top-p or
    another temperature the answers come from a narrower policy than the one whose distributions are taken, so it is an
    estimate on what is really said.
    """
    return intervals.positive_mean([[sum(row)] for row in kls], confidence, seed)


def kl_per_token(kls: TokenKLs, confidence: float, seed: int) -> intervals.Interval:
    """KL(policy || reference) in nats per token: the sum over the tokens of all answers, over their number."""
    if not any(kls):
        return intervals.Interval(math.nan, 0.0, math.inf, 0)
    return intervals.positive_mean(kls, confidence, seed)
