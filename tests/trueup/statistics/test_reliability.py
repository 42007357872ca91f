"""How often annotators are right: planted probabilities are found, whatever tells of them."""

from __future__ import annotations

import random

import pytest

from trueup.statistics.reliability import agreement_of, best_accuracy, label_weight, right_probabilities

TRUE = {"ann": 0.95, "bob": 0.85, "cat": 0.7, "spam": 0.5}


def vote(chance: random.Random, truth: bool, right: float) -> bool:
    return truth if chance.random() < right else not truth


@pytest.mark.parametrize("seed", range(3))
def test_planted_probabilities_are_found_from_overlapping_labels(seed: int) -> None:
    chance = random.Random(seed)
    pairs = []
    for _ in range(800):
        truth = chance.random() < 0.5
        pairs.append({name: [vote(chance, truth, TRUE[name])] for name in chance.sample(list(TRUE), 3)})
    right = right_probabilities(pairs, {})
    assert right == {name: pytest.approx(q, abs=0.06) for name, q in TRUE.items()}
    turned = [{name: [not one for one in own] for name, own in votes.items()} for votes in pairs]
    assert right_probabilities(turned, {}) == pytest.approx(right), "which answer comes first means nothing"


def test_hidden_checks_alone_and_hidden_repeats_alone_tell_of_annotators() -> None:
    right = right_probabilities([], {"ann": (190, 200), "spam": (100, 200)})
    assert right == {"ann": pytest.approx(0.95, abs=0.02), "spam": pytest.approx(0.5, abs=0.02)}
    chance = random.Random(0)
    twice = [{name: [vote(chance, True, q), vote(chance, True, q)]} for name, q in TRUE.items() for _ in range(600)]
    right = right_probabilities(twice, {})
    assert [right[name] for name in ("ann", "bob", "cat")] == pytest.approx([0.95, 0.85, 0.7], abs=0.06)


def test_of_two_annotators_it_is_the_accuracy_that_their_agreement_allows() -> None:
    pairs = [{"ann": [True], "bob": [i % 100 >= 18]} for i in range(2_000)]
    agreement = sum(map(agreement_of, pairs)) / len(pairs)
    assert agreement == pytest.approx(0.82) and best_accuracy(agreement) == pytest.approx(0.9)
    right = right_probabilities(pairs, {})
    assert right == {"ann": pytest.approx(0.9, abs=0.01), "bob": pytest.approx(0.9, abs=0.01)}


def test_who_shared_nothing_is_not_judged_and_few_labels_say_little() -> None:
    assert right_probabilities([{"ann": [True]}, {"bob": [False]}], {"cat": (0, 0)}) == {}
    (few,) = right_probabilities([], {"ann": (1, 1)}).values()
    (many,) = right_probabilities([], {"ann": (100, 100)}).values()
    assert 0.75 < few < 0.85 < 0.98 < many


def test_a_label_by_chance_weighs_nothing_and_a_sure_one_one() -> None:
    assert [label_weight(q) for q in (0.3, 0.5, 0.75, 1.0)] == [0, 0, 0.5, 1]
