"""How texts are, whatever a judge says of them: repetition within one, likeness between several. Words and their
n-grams as in `trueup.data.words`: lower case, without punctuation, in any script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from trueup.data.words import ngrams, words
from trueup.statistics.intervals import Interval, bootstrap_mean


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """The share of different n-grams among those of all texts together; 0 where there is none.

    Li et al. 2016, https://arxiv.org/abs/1510.03055. More or longer texts repeat more, so only sets of like size
    compare.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 3) -> float:
    """Share of the texts in which an n-gram of words comes twice.

    Trigrams, since people hardly repeat one (Paulus et al. 2017, https://arxiv.org/abs/1705.04304).
    """
    grams_of_texts = [ngrams(text, n) for text in texts]
    return sum(len(set(grams)) < len(grams) for grams in grams_of_texts) / len(grams_of_texts)


def self_similarity(texts: Sequence[str]) -> float:
    """How alike several answers to one prompt are, over all pairs of them: 1 the same word pairs, 0 none in common.

    Two texts have the share of their pairs of neighbouring words that both hold, |A & B| / |A | B|: the resemblance of
    Broder 1997 (https://doi.org/10.1109/SEQUEN.1997.666900) with shingles of two words. Self-BLEU (Zhu et al. 2018,
    https://arxiv.org/abs/1802.01886) asks the same, but depends on how many texts there are and on a smoothing. A text
    of fewer than two words is one shingle. NaN for fewer than two texts.
    """
    gram_sets = [set(ngrams(text, 2)) or {tuple(words(text))} for text in texts]
    shares = [len(a & b) / len(a | b) for a, b in combinations(gram_sets, 2)]
    return sum(shares) / len(shares) if shares else math.nan


def mean_self_similarity(answers: Sequence[Sequence[str]], confidence: float = 0.95, seed: int = 0) -> Interval:
    """`self_similarity` of each prompt's answers, on average over prompts; `n` of it is prompts with two answers or
    more.

    answers  P lists of texts
    """
    values = [[self_similarity(texts)] for texts in answers if len(texts) > 1]
    return bootstrap_mean(values, confidence, seed) if values else Interval(math.nan, 0.0, 1.0, 0)
