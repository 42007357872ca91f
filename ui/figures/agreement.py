"""Agreement of annotators, each coefficient with a bootstrap interval over items; no torch.

    raw            share of the pairs of labels of one item that are equal
    cohen          kappa of two annotators (Cohen 1960; quadratic weights for grades: Cohen 1968)
    fleiss         kappa of a fixed number of labels per item (Fleiss 1971, https://doi.org/10.1037/h0031619)
    krippendorff   alpha, nominal or ordinal, any number of labels per item (Krippendorff 2011,
                   https://repository.upenn.edu/asc_papers/43)

A coefficient means little without an interval. If all labels are equal it is undefined: chance agreement is 1, and the
formulas divide 0 by 0. Such a value is None, with a reason.

Values come from scikit-learn, statsmodels and krippendorff. Intervals resample whole items. Items with the same labels
are interchangeable, and few are distinct (three labels out of four values: 31). So a resample is a multinomial draw
over these, at a cost that does not grow with the number of items. The libraries take no such weights; the formulas with
weights are below, and a test compares them with the libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from trueup.statistics.intervals import percentiles, wilson

Statistic = Callable[[np.ndarray], np.ndarray]
"""A function from the counts of each distinct item, (R, P), to R values; NaN where undefined."""

Weights = Literal["quadratic"] | None

RESAMPLES = 1_000
_DRAWS = 20_000_000
"""Most numbers that one bootstrap draws: beyond 20,000 distinct items it takes fewer resamples, at least 100."""
_LIBRARY_ITEMS = 10_000
"""Most items for which the library computes alpha; its memory grows with items times values squared."""

NO_PAIRS = "undefined: no item has two labels"
ALL_EQUAL = "undefined: all labels are equal"


@dataclass(frozen=True)
class LabelCodes:
    """N labels as codes from 0, each (N,); an annotator labels an item at most once."""

    item: np.ndarray
    annotator: np.ndarray
    value: np.ndarray
    """The label: the index of a category, or, where order matters, of a grade from lowest to highest."""
    values: int
    """Number of possible values."""

    @cached_property
    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct rows of value counts (P, C) among items with two labels or more, and the items of each."""
        return _distinct(_counts(self))


@dataclass(frozen=True)
class Agreement:
    """A coefficient with its 95 % interval. `note` says why a figure is missing, or to which items it belongs."""

    value: float | None
    low: float | None
    high: float | None
    items: int
    """Items with at least two labels; others do not count."""
    labels: int
    """Labels of those items."""
    note: str | None = None


def load_libraries() -> None:
    """Import the libraries of the coefficients. It takes most of a second, so a background thread does it first."""
    import krippendorff  # noqa: F401
    import scipy.special  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import statsmodels.stats.inter_rater  # noqa: F401


def raw(labels: LabelCodes) -> Agreement:
    """The share of equal pairs among all pairs of labels of one item, not corrected for chance."""
    counts, items = labels.distinct
    if not items.size:
        return _undefined(NO_PAIRS)
    return _share(lambda w: _raw(w, counts), items, int(items @ counts.sum(axis=1)))


def cohen(labels: LabelCodes, weights: Weights = None) -> Agreement:
    """Kappa of exactly two annotators over the items that both labelled; quadratic weights for grades."""
    names = np.unique(labels.annotator)
    if len(names) != 2:
        return _undefined(f"undefined: Cohen's kappa compares two annotators, and there are {len(names)}")
    first, second = (labels.annotator == name for name in names)
    _, one, other = np.intersect1d(labels.item[first], labels.item[second], assume_unique=True, return_indices=True)
    cells = labels.value[first][one].astype(np.int64) * labels.values + labels.value[second][other]
    table = np.bincount(cells, minlength=labels.values**2).reshape(labels.values, labels.values)
    result = cohen_of_table(table, weights)
    if result.value is None:
        return result
    from sklearn.metrics import cohen_kappa_score

    one, other = np.divmod(np.arange(table.size), labels.values)
    value = cohen_kappa_score(one, other, weights=weights, sample_weight=table.ravel())
    return replace(result, value=float(value))


def cohen_of_table(table: np.ndarray, weights: Weights = None) -> Agreement:
    """Kappa from the (C, C) table of the items with value i from one annotator and value j from the other."""
    values, items = len(table), int(table.sum())
    if not items:
        return _undefined("undefined: the two share no item")
    if (table.sum(axis=0) + table.sum(axis=1) > 0).sum() == 1:
        return _undefined(ALL_EQUAL, items, 2 * items)
    cells = table.ravel()
    # Runs for every two annotators, every few seconds: scikit-learn's checks of its arguments would take too long.
    value = float(_cohen(cells[None], values, weights)[0])
    return _with_interval(value, lambda w: _cohen(w, values, weights), cells, 2 * items)


def fleiss(labels: LabelCodes) -> Agreement:
    """Kappa over the items with the most common number of labels, since it needs the same number everywhere."""
    counts, items = labels.distinct
    if not items.size:
        return _undefined(NO_PAIRS)
    sizes = counts.sum(axis=1)
    commonest = np.bincount(sizes, items).argmax()
    left_out = int(items[sizes != commonest].sum())
    counts, items = counts[sizes == commonest], items[sizes == commonest]
    note = f"of the items with {commonest} labels; {left_out} with another number left out" if left_out else None
    if _all_equal(counts):
        return _undefined(ALL_EQUAL, int(items.sum()), int(items @ counts.sum(axis=1)))
    from statsmodels.stats.inter_rater import fleiss_kappa

    value = float(fleiss_kappa(np.repeat(counts, items, axis=0)))
    return _with_interval(value, lambda w: _fleiss(w, counts), items, int(items.sum() * commonest), note)


def krippendorff(labels: LabelCodes, level: Literal["nominal", "ordinal"] = "nominal") -> Agreement:
    """Alpha over all items with two labels or more. It allows for missing labels."""
    counts, items = labels.distinct
    if not items.size:
        return _undefined(NO_PAIRS)
    if _all_equal(counts):
        return _undefined(ALL_EQUAL, int(items.sum()), int(items @ counts.sum(axis=1)))
    coincidences = _coincidences(counts)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _alpha(weights, counts, coincidences, level)

    if items.sum() <= _LIBRARY_ITEMS:
        from krippendorff import alpha

        value_counts, domain = np.repeat(counts, items, axis=0), np.arange(labels.values)
        value = float(alpha(value_counts=value_counts, value_domain=domain, level_of_measurement=level))
    else:
        value = float(statistic(items[None])[0])
    return _with_interval(value, statistic, items, int(items @ counts.sum(axis=1)))


def share_over_items(item: np.ndarray, hit: np.ndarray) -> Agreement:
    """The share of labels with a property, resampling items, since labels of one item are not independent.

    item  (N,) codes from 0
    hit   (N,) whether the label has the property
    """
    if not len(item):
        return _undefined("no labels")
    n = np.bincount(item)
    table, items = _distinct(np.stack([np.bincount(item, hit, len(n)).astype(np.int64), n], axis=1)[n > 0])
    return _share(lambda w: (w @ table[:, 0]) / (w @ table[:, 1]), items, len(item))


# ---- Formulas over weights --------------------------------------------------------------------------------------
# weights  (R, P) how often each distinct item is in each resample
# counts   (P, C) how often a distinct item has each value


def _raw(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    size = counts.sum(axis=1)
    return (weights @ (counts * (counts - 1)).sum(axis=1)) / (weights @ (size * (size - 1)))


def _fleiss(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Eq. 3 to 7 of Fleiss 1971."""
    size = counts[0].sum()
    observed = weights @ ((counts * (counts - 1)).sum(axis=1) / (size * (size - 1))) / weights.sum(axis=1)
    share = weights @ counts
    share = share / share.sum(axis=1, keepdims=True)
    return _one_minus(1 - observed, 1 - (share**2).sum(axis=1))


def _cohen(weights: np.ndarray, values: int, kind: Weights) -> np.ndarray:
    """A distinct item is a cell of the table of the two annotators, row by row."""
    grade = np.arange(values)
    distance = (grade[:, None] - grade) ** 2 if kind == "quadratic" else (grade[:, None] != grade).astype(int)
    table = weights.reshape(len(weights), values, values)
    expected = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
    return _one_minus((table * distance).sum(axis=(1, 2)) * weights.sum(axis=1), (expected * distance).sum(axis=(1, 2)))


def _alpha(
    weights: np.ndarray, counts: np.ndarray, coincidences: np.ndarray, level: Literal["nominal", "ordinal"]
) -> np.ndarray:
    totals = weights @ counts  # (R, C)
    observed = (weights @ coincidences).reshape(-1, totals.shape[1], totals.shape[1])
    if level == "ordinal":
        # Krippendorff's sum from c to k minus half of both ends is the distance between the middles of their ranks.
        middle = totals.cumsum(axis=1) - totals / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    else:
        distance = 1 - np.eye(totals.shape[1])[None]
    expected = totals[:, :, None] * totals[:, None, :]
    return _one_minus(
        (observed * distance).sum(axis=(1, 2)) * (totals.sum(axis=1) - 1), (expected * distance).sum(axis=(1, 2))
    )


def _coincidences(counts: np.ndarray) -> np.ndarray:
    """(P, C * C) pairs of values within each distinct item, each weighted 1 / (labels - 1)."""
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1], dtype=np.int64)
    return (pairs / (counts.sum(axis=1) - 1)[:, None, None]).reshape(len(counts), -1)


def _one_minus(disagreement: np.ndarray, by_chance: np.ndarray) -> np.ndarray:
    undefined = by_chance <= 1e-12
    return np.where(undefined, np.nan, 1 - disagreement / np.where(undefined, 1, by_chance))


# ---- Items and intervals ----------------------------------------------------------------------------------------


def _counts(labels: LabelCodes) -> np.ndarray:
    """(I, C) how often each item with two labels or more has each value."""
    items = int(labels.item.max()) + 1 if labels.item.size else 0
    flat = labels.item.astype(np.int64) * labels.values + labels.value
    counts = np.bincount(flat, minlength=items * labels.values).reshape(items, labels.values)
    return counts[counts.sum(axis=1) > 1]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of (I, C) counts, and the number of each."""
    if not len(rows):
        return rows, np.zeros(0, dtype=np.int64)
    # Rows become numbers, which sort faster; they are renumbered before they would overflow.
    key, size = np.zeros(len(rows), dtype=np.int64), 1
    for column in rows.T:
        base = int(column.max()) + 1
        if size * base >= 2**62:
            _, key = np.unique(key, return_inverse=True)
            size = int(key.max()) + 1
        key, size = key * base + column, size * base
    _, index, number = np.unique(key, return_index=True, return_counts=True)
    return rows[index], number


def _all_equal(counts: np.ndarray) -> bool:
    return int((counts.sum(axis=0) > 0).sum()) == 1


def _undefined(why: str, items: int = 0, labels: int = 0) -> Agreement:
    return Agreement(None, None, None, items, labels, why)


def _share(statistic: Statistic, items: np.ndarray, labels: int) -> Agreement:
    """A proportion. A bootstrap of all or nothing has no width, so then the interval is Wilson's over items."""
    value, total = float(statistic(items[None])[0]), int(items.sum())
    if value in (0.0, 1.0):
        bounds = wilson(value * total, total)
        return Agreement(value, bounds.low, bounds.high, total, labels)
    return _with_interval(value, statistic, items, labels)


def _with_interval(
    value: float, statistic: Statistic, items: np.ndarray, labels: int, note: str | None = None
) -> Agreement:
    """The expanded percentile interval (see trueup.statistics) over `items`, the number of each distinct one."""
    total = int(items.sum())
    if total < 2:
        return Agreement(value, None, None, total, labels, "no interval: one item")
    present = items > 0
    resamples = min(RESAMPLES, max(100, _DRAWS // int(present.sum())))
    draws = np.zeros((resamples, len(items)))
    draws[:, present] = np.random.default_rng(0).multinomial(total, items[present] / total, size=resamples)
    values = statistic(draws)
    values = values[np.isfinite(values)]
    if len(values) < 0.9 * resamples:
        why = "no interval: in many resamples all labels are equal"
        return Agreement(value, None, None, total, labels, why)
    low, high = percentiles(values, 0.95, total)
    if high - low < 1e-12:
        return Agreement(value, None, None, total, labels, "no interval: all items have the same labels")
    return Agreement(value, low, high, total, labels, note)
