"""The pairs of a ranking: strict ones, ties, and what each weighs."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from trueup.data.pairs import pairs_of, ties_of
from trueup.data.records import Message, Ranking
from trueup.training.pairs import weights


def ranking(tiers: list[list[int]], label_id: str = "1", **more: object) -> Ranking:
    count = sum(map(len, tiers))
    values = {"prompt_id": "p", "prompt": [Message(role="user", content="Why?")], "split": "train"}
    return Ranking(
        **values,
        label_id=label_id,
        source="human",
        annotator="me",
        created_utc="",
        completions=[f"answer {i}" for i in range(count)],
        completion_token_ids=[[i] for i in range(count)],
        finished=[i % 2 == 0 for i in range(count)],
        logps=[-float(i) for i in range(count)],
        tiers=tiers,
        display_order=list(reversed(range(count))),
        **more,
    )


def random_tiers(chance: random.Random) -> list[list[int]]:
    answers = list(range(chance.randint(2, 7)))
    chance.shuffle(answers)
    tiers: list[list[int]] = []
    for answer in answers:
        if tiers and chance.random() < 0.4:
            tiers[-1].append(answer)
        else:
            tiers.append([answer])
    return tiers


@pytest.mark.parametrize("seed", range(30))
def test_every_two_answers_of_a_ranking_are_one_pair_or_one_tie(seed: int) -> None:
    tiers = random_tiers(random.Random(seed))
    rank = {answer: place for place, tier in enumerate(tiers) for answer in tier}
    said = ranking(tiers)
    strict, ties = pairs_of(said), ties_of(said)
    sides = [{int(text[0].content.split()[1]) for text in (pair.chosen, pair.rejected)} for pair in strict + ties]
    assert sorted(map(sorted, sides)) == [list(two) for two in combinations(range(len(rank)), 2)]
    for pair in strict + ties:
        chosen, rejected = (int(text[0].content.split()[1]) for text in (pair.chosen, pair.rejected))
        assert (pair.chosen_rank, pair.rejected_rank) == (rank[chosen], rank[rejected])
        assert (pair.chosen_rank < pair.rejected_rank) == (pair in strict)
        assert (pair.chosen_logp, pair.rejected_finished) == (-chosen, rejected % 2 == 0), "each side keeps its own"
        assert pair.display_first == ("chosen" if chosen > rejected else "rejected"), "they stood in reversed order"


def test_only_a_tie_can_be_of_two_bad_answers() -> None:
    assert [tie.both_bad for tie in ties_of(ranking([[0, 1]], both_bad=True))] == [True]
    assert [tie.both_bad for tie in ties_of(ranking([[0, 1]]))] == [False]


@pytest.mark.parametrize("seed", range(5))
def test_the_pairs_of_each_label_weigh_one_together(seed: int) -> None:
    chance = random.Random(seed)
    pairs = [pair for n in range(6) for pair in pairs_of(ranking(random_tiers(chance), str(n)))]
    chance.shuffle(pairs)
    labels = {pair.label_id for pair in pairs}
    for label in labels:
        own = [weight for pair, weight in zip(pairs, weights(pairs), strict=True) if pair.label_id == label]
        assert sum(own) == pytest.approx(1) and len(set(own)) == 1
