"""Agreement against published worked examples and against the libraries; where it is undefined it says why."""

from __future__ import annotations

import numpy as np
import pytest

from ui.figures import agreement
from ui.figures.agreement import LabelCodes, cohen, cohen_of_table, fleiss, krippendorff, raw, share_over_items


def table(rows: list[str], values: int = 5) -> LabelCodes:
    """Labels from one line per annotator: a grade from 1 for each item, * where there is none."""
    cells = [(i, a, int(v) - 1) for a, row in enumerate(rows) for i, v in enumerate(row.split()) if v != "*"]
    item, annotator, value = np.array(cells).reshape(-1, 3).T
    return LabelCodes(item, annotator, value, values)


def of_counts(counts: np.ndarray) -> LabelCodes:
    """Labels with so many of each value for each item."""
    item, value = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    return LabelCodes(item, np.concatenate([np.arange(n) for n in counts.sum(axis=1)]), value, counts.shape[1])


# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
KRIPPENDORFF = table(
    [
        "1 2 3 3 2 1 4 1 2 * * *",
        "1 2 3 3 2 2 4 1 2 5 * 3",
        "* 3 3 3 2 3 4 2 2 5 1 *",
        "1 2 3 3 2 4 4 1 2 5 1 *",
    ]
)
# The worked example of https://en.wikipedia.org/wiki/Fleiss%27_kappa: ten subjects, fourteen raters, five categories.
FLEISS = np.array(
    [list(map(int, row.split())) for row in (
        "0 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1",
        "7 7 0 0 0", "3 2 6 3 0", "2 5 3 2 2", "6 5 2 1 0", "0 2 2 3 7",
    )]
)  # fmt: skip
# The worked example of https://en.wikipedia.org/wiki/Cohen%27s_kappa: fifty grant proposals, two readers.
COHEN = np.array([[20, 5], [10, 15]])


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    assert krippendorff(KRIPPENDORFF, "nominal").value == pytest.approx(0.743, abs=5e-4)
    ordinal = krippendorff(KRIPPENDORFF, "ordinal")
    assert ordinal.value == pytest.approx(0.815, abs=5e-4)
    assert (ordinal.items, ordinal.labels) == (11, 40)  # one unit has a single value, which pairs with nothing


def test_kappas_are_those_of_the_worked_examples() -> None:
    assert fleiss(of_counts(FLEISS)).value == pytest.approx(0.210, abs=5e-4)
    assert cohen_of_table(COHEN).value == pytest.approx(0.4)
    one, other = np.repeat([0, 0, 1, 1], COHEN.ravel()), np.repeat([0, 1, 0, 1], COHEN.ravel())
    both = LabelCodes(np.tile(np.arange(50), 2), np.repeat([3, 8], 50), np.concatenate([one, other]), 2)
    assert cohen(both).value == pytest.approx(0.4)
    assert raw(both).value == pytest.approx(0.7)


def test_the_formulas_of_the_intervals_equal_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    for _ in range(50):
        values, n = int(rng.integers(2, 8)), int(rng.integers(2, 6))
        counts = rng.multinomial(n, rng.dirichlet(np.full(values, 4.0)), size=40)
        distinct, items = of_counts(counts).distinct
        assert agreement._fleiss(items[None], distinct)[0] == pytest.approx(fleiss(of_counts(counts)).value)
        ragged = of_counts(np.minimum(counts, rng.integers(0, 3, counts.shape)))
        library = [krippendorff(ragged, level).value for level in ("nominal", "ordinal")]
        monkeypatch.setattr(agreement, "_LIBRARY_ITEMS", 0)
        assert [krippendorff(ragged, level).value for level in ("nominal", "ordinal")] == pytest.approx(library)
        monkeypatch.undo()
        a, b = rng.integers(0, values, (2, 30))
        cells = np.bincount(a * values + b, minlength=values * values).reshape(values, values)
        for weights in (None, "quadratic"):
            kappa = cohen_kappa_score(a, b, weights=weights)
            assert cohen_of_table(cells, weights).value == pytest.approx(kappa)


def test_what_is_undefined_says_why() -> None:
    none = np.zeros(0, dtype=int)
    nothing = LabelCodes(none, none, none, values=3)
    once = table(["1 2 3 * *", "* * * 1 2"])
    equal = table(["2 2 2", "2 2 2"])
    for labels in (nothing, once):
        for measure in (raw, fleiss, krippendorff):
            assert measure(labels).value is None
            assert measure(labels).note == "undefined: no item has two labels"
    assert cohen(once).note == "undefined: the two share no item"
    for found in (fleiss(equal), krippendorff(equal), cohen(equal)):
        assert (found.value, found.note) == (None, "undefined: all labels are equal")
    assert cohen(KRIPPENDORFF).note == "undefined: Cohen's kappa compares two annotators, and there are 4"
    assert share_over_items(np.array([], dtype=int), np.array([], dtype=bool)).note == "no labels"


def test_an_interval_is_left_out_where_a_bootstrap_knows_nothing() -> None:
    single = raw(table(["1", "2"]))
    assert (single.value, single.low) == (0.0, 0.0)
    assert single.high == pytest.approx(0.793, abs=1e-3)  # Wilson's, of one
    perfect = krippendorff(table(["1 2 1 2 1 2", "1 2 1 2 1 2"]))
    assert (perfect.value, perfect.low, perfect.note) == (1.0, None, "no interval: all items have the same labels")
    assert krippendorff(table(["1 2", "2 2"])).low is None


def test_fleiss_takes_the_items_with_the_commonest_number_of_labels_and_says_so() -> None:
    labels = table(["1 2 3 1 2", "1 2 3 2 2", "1 2 3 3 *"])
    found = fleiss(labels)
    assert found.note == "of the items with 3 labels; 1 with another number left out"
    assert (found.items, found.labels) == (4, 12)


def test_the_bootstrap_covers_the_true_agreement_of_items() -> None:
    # Items are hard or easy, so that labels of an item are alike: an interval over labels would be too narrow.
    rng, hits, tries = np.random.default_rng(1), 0, 200
    truth = float(np.mean([q * q + (1 - q) * (1 - q) for q in (0.55, 0.98)]))
    for _ in range(tries):
        q = rng.choice([0.55, 0.98], 60)
        value = (rng.random((60, 4)) < q[:, None]).astype(int)
        found = raw(LabelCodes(np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60), value.ravel(), 2))
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / tries <= 0.99


def test_resampling_distinct_items_is_resampling_items() -> None:
    labels = of_counts(np.random.default_rng(2).multinomial(3, [0.5, 0.3, 0.2], size=80))
    found, counts = krippendorff(labels), np.zeros((80, 3), dtype=int)
    np.add.at(counts, (labels.item, labels.value), 1)
    rng, plain = np.random.default_rng(3), []
    coincidences = agreement._coincidences(counts)
    for _ in range(2000):
        weights = np.bincount(rng.integers(0, 80, 80), minlength=80)[None].astype(float)
        plain.append(agreement._alpha(weights, counts, coincidences, "nominal")[0])
    assert found.low is not None and found.high is not None
    assert [found.low, found.high] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.03)
