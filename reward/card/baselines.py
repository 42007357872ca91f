"""Baselines of a reward model: rules that read nothing, and a bag of words, which reads words without their order.

A reward model that orders held-out pairs no better than these has not been shown to know more than they do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.card.shares import half_for_ties, mean_over_prompts
from trueup.data.records import Preference
from trueup.data.words import count_words, words

LENGTH = "shorter or longer, as in training"
BAG = "bag of words"

Rule = Callable[[Sequence[Preference]], list[float]]
"""Of each pair 1 if the rule prefers the chosen answer, 0 if the other, 0.5 if it cannot tell."""


@dataclass(frozen=True)
class LearntRule:
    """A rule with what it learnt from the training pairs."""

    rule: Rule
    accuracy: float
    """On training pairs. A rule that could learn them by heart is measured on prompts that it did not learn from."""
    reversed: bool | None = None
    words: int | None = None


def learn_baselines(train: Sequence[Preference]) -> dict[str, LearntRule]:
    """All baselines, from the training pairs alone."""
    return {
        LENGTH: _directed(longer, train),
        "finished, then longer": _directed(_finished_then_longer, train),
        "nearest to the best length": _nearest(train),
        BAG: bag_of_words(train),
    }


# ---- Rules that read nothing --------------------------------------------------------------------------------------


def _lengths(pair: Preference) -> tuple[float, float]:
    return count_words(pair.chosen[0].content), count_words(pair.rejected[0].content)


def longer(pair: Preference) -> float:
    """By how many words the chosen answer is longer."""
    chosen, rejected = _lengths(pair)
    return chosen - rejected


def _finished_then_longer(pair: Preference) -> float:
    return 1000.0 * (pair.chosen_finished - pair.rejected_finished) + longer(pair)


def _directed(rank: Callable[[Preference], float], train: Sequence[Preference]) -> LearntRule:
    """A rule that follows the sign of `rank`, or the opposite if that is right more often in training."""
    accuracy = mean_over_prompts(train, [half_for_ties(rank(pair)) for pair in train])
    sign = 1 if accuracy >= 0.5 else -1
    return LearntRule(
        lambda pairs: [half_for_ties(sign * rank(pair)) for pair in pairs], max(accuracy, 1 - accuracy), sign < 0
    )


def _nearest(train: Sequence[Preference]) -> LearntRule:
    """A rule that prefers the answer nearest to a target length, the one that is right most often in training."""
    lengths = [_lengths(pair) for pair in train]

    def nearest(lengths: Sequence[tuple[float, float]], target: int) -> list[float]:
        return [half_for_ties(abs(rejected - target) - abs(chosen - target)) for chosen, rejected in lengths]

    accuracies = {target: mean_over_prompts(train, nearest(lengths, target)) for target in range(1, 120)}
    best = max(accuracies, key=accuracies.__getitem__)
    return LearntRule(lambda pairs: nearest([_lengths(pair) for pair in pairs], best), accuracies[best], words=best)


# ---- Bag of words -------------------------------------------------------------------------------------------------

_VOCABULARY = 20_000
"""Most words that the bag knows: those in the answers of the most training pairs."""
_FOLDS = 5


def bag_of_words(train: Sequence[Preference]) -> LearntRule:
    """A logistic regression on the differences in how often each word occurs in the two answers, over the training
    pairs, where each prompt weighs the same. It knows topics and turns of phrase, and neither the prompt nor the order
    of words. Its accuracy in training is measured by cross-validation over prompts."""
    bags = [_bag(pair) for pair in train]
    names = sorted({pair.prompt_id for pair in train})
    fold_of = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % _FOLDS, strict=True))
    folds = [int(fold_of[pair.prompt_id]) for pair in train]
    right = [0.5] * len(train)
    for fold in sorted(set(folds)):
        rest = [i for i, number in enumerate(folds) if number != fold]
        weights = _learn([train[i] for i in rest], [bags[i] for i in rest])
        for i, number in enumerate(folds):
            if number == fold:
                right[i] = _right(bags[i], weights)
    weights = _learn(train, bags)
    return LearntRule(lambda pairs: [_right(_bag(pair), weights) for pair in pairs], mean_over_prompts(train, right))


def _bag(pair: Preference) -> dict[str, int]:
    """How much more often each word occurs in the chosen answer than in the other."""
    chosen = Counter(words(pair.chosen[0].content))
    chosen.subtract(words(pair.rejected[0].content))
    return {word: count for word, count in chosen.items() if count}


def _learn(pairs: Sequence[Preference], bags: Sequence[dict[str, int]]) -> dict[str, float]:
    """The weight of each word; empty if no two answers differ in their words."""
    from scipy.sparse import csr_matrix, vstack
    from sklearn.linear_model import LogisticRegression

    in_pairs = Counter(word for bag in bags for word in bag)
    vocabulary = {word: i for i, (word, _) in enumerate(in_pairs.most_common(_VOCABULARY))}
    if not vocabulary:
        return {}
    rows, columns, counts = [], [], []
    for row, bag in enumerate(bags):
        known = [(vocabulary[word], count) for word, count in bag.items() if word in vocabulary]
        rows += [row] * len(known)
        columns += [column for column, _ in known]
        counts += [count for _, count in known]
    x = csr_matrix((counts, (rows, columns)), shape=(len(bags), len(vocabulary)), dtype=float)
    pairs_of_prompt = Counter(pair.prompt_id for pair in pairs)
    weights = [1 / pairs_of_prompt[pair.prompt_id] for pair in pairs]
    # Each pair stands in both orders: a classifier needs two classes, and neither place is the better one.
    model: Any = LogisticRegression(fit_intercept=False, max_iter=200, tol=1e-3)
    model.fit(vstack([x, -x]), [1] * len(bags) + [0] * len(bags), [weight / 2 for weight in weights * 2])
    return dict(zip(vocabulary, model.coef_[0].tolist(), strict=True))


def _right(bag: dict[str, int], weights: dict[str, float]) -> float:
    return half_for_ties(sum(weights.get(word, 0.0) * count for word, count in bag.items()))
