"""What people said, in rows that the reward model learns from: rankings whole, grades, ties, and bad answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from reward.comparisons import Collator, LabelRow, counts, label_rows
from reward.config import RewardConfig
from reward.loss import preference_loss, strict_loss
from reward.trainer import add_threshold, threshold_parameter
from trueup.data.pairs import pairs_of, ties_of
from trueup.data.records import Message, Preference, Ranking
from trueup.models.config import ModelConfig
from trueup.training.pairs import EncodedPair

PROMPT = [1, 2]


def config(**keys: Any) -> RewardConfig:
    return RewardConfig(run_dir=Path("run"), model=ModelConfig(), **keys)


def ranking(tiers: list[list[int]], label_id: str = "1", **more: Any) -> Ranking:
    values: dict[str, Any] = {"prompt_id": "p", "prompt": [Message(role="user", content="Why?")], "split": "train"}
    values |= {"source": "human", "annotator": "me", "created_utc": "", "label_id": label_id, **more}
    count = 1 + max(i for tier in tiers for i in tier)
    completions = more.get("completions") or [chr(97 + i) for i in range(count)]
    values |= {"completions": completions, "completion_token_ids": [None] * count, "finished": [True] * count}
    return Ranking(**values, tiers=tiers)


def encoded(pairs: list[Preference]) -> list[tuple[Preference, EncodedPair]]:
    """Each letter of an answer is a token."""
    ids = [[[ord(letter) for letter in side[0].content] for side in (pair.chosen, pair.rejected)] for pair in pairs]
    return [(pair, EncodedPair(PROMPT, *sides)) for pair, sides in zip(pairs, ids, strict=True)]


def rows_of(*rankings: Ranking, **keys: Any) -> list[LabelRow]:
    strict = [pair for ranking in rankings for pair in pairs_of(ranking)]
    ties = [pair for ranking in rankings for pair in ties_of(ranking)]
    return label_rows(config(**keys), encoded(strict), encoded(ties))


def score(answers: list[list[int]]) -> torch.Tensor:
    """Scores that depend on the answer alone."""
    return torch.tensor([float(sum(answer) % 7) for answer in answers])


def loss_of(rows: list[LabelRow], threshold: float | None = None) -> float:
    batch = Collator(0)([row.columns for row in rows])
    gaps = batch["contrasts"] @ score([answer for row in rows for answer in row.answers])
    h = None if threshold is None else torch.tensor(threshold)
    total = preference_loss(gaps, batch["margins"], batch["ties"], batch["weights"], h)
    return (total / batch["rows"]).item()


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_a_ranking_is_one_row_whose_loss_is_the_mean_over_its_pairs(count: int) -> None:
    order = random.Random(count).sample(range(count), count)
    row = rows_of(ranking([[i] for i in order]))
    assert len(row) == 1 and len(row[0].answers) == count, "each answer is read once"
    scores = score([[*PROMPT, 97 + i] for i in range(count)])
    pairs = [(order[i], order[j]) for i in range(count) for j in range(i + 1, count)]
    mean = sum(strict_loss(scores[i] - scores[j]).item() for i, j in pairs) / len(pairs)
    assert loss_of(row) == pytest.approx(mean, abs=1e-6)


def test_labels_weigh_the_same_however_many_answers_they_rank() -> None:
    pair, four = ranking([[0], [1]], "pair"), ranking([[3], [2], [1], [0]], "four")
    alone = [loss_of(rows_of(one)) for one in (pair, four)]
    assert loss_of(rows_of(pair, four)) == pytest.approx(sum(alone) / 2, abs=1e-6)


def test_a_grade_asks_for_a_margin_and_no_grade_for_none() -> None:
    for strength, margin in ((None, 0.0), (1, 0.1), (2, 0.2), (3, 0.4)):
        (row,) = rows_of(ranking([[0], [1]], strength=strength), grade_margins=[0.1, 0.2, 0.4])
        assert [one.margin for one in row.comparisons] == [margin]
    (row,) = rows_of(ranking([[0], [1]], strength=3), grade_margins=[0, 0, 0])
    assert row.comparisons[0].margin == 0 and counts([row])["graded"] == 0


def test_ties_within_a_ranking_count_among_its_pairs() -> None:
    (row,) = rows_of(ranking([[0, 1], [2]]))
    assert counts([row]) == {"labels": 1, "comparisons": 3, "ties": 1, "graded": 0, "below_others": 0, "ideal": 0}
    assert [one.weight for one in row.comparisons] == pytest.approx([1 / 3] * 3)
    (row,) = rows_of(ranking([[0, 1], [2]]), ties="leave_out")
    assert counts([row])["ties"] == 0 and [one.weight for one in row.comparisons] == [0.5, 0.5]
    assert rows_of(ranking([[0, 1]]), ties="leave_out") == []


def test_two_bad_answers_are_below_the_mean_of_those_that_somebody_preferred() -> None:
    good = ranking([[0], [1]], "good", completions=["good", "poor"])
    fine = ranking([[0], [1]], "fine", completions=["fine", "poor"])
    bad = ranking([[0, 1]], "bad", completions=["bad", "awful"], both_bad=True)
    row = rows_of(good, fine, bad)[2]
    texts = ["".join(map(chr, answer[len(PROMPT) :])) for answer in row.answers]
    sides = [({texts[i] for i in one.better}, {texts[i] for i in one.worse}) for one in row.comparisons]
    assert sides == [({"bad"}, {"awful"}), ({"good", "fine"}, {"bad"}), ({"good", "fine"}, {"awful"})]
    assert [one.is_tie for one in row.comparisons] == [True, False, False]
    scores = score(row.answers).tolist()
    mean = (scores[texts.index("good")] + scores[texts.index("fine")]) / 2
    gaps = (Collator(0)([row.columns])["contrasts"] @ score(row.answers)).tolist()
    assert gaps[1:] == pytest.approx([mean - scores[texts.index(text)] for text in ("bad", "awful")])


def test_an_answer_that_was_found_bad_stands_above_no_other() -> None:
    good = ranking([[0], [1]], "1", completions=["bad", "worse"])
    bad = ranking([[0, 1]], "2", completions=["bad", "awful"], both_bad=True)
    assert counts(rows_of(good, bad))["below_others"] == 0, "nobody preferred another answer: they are a tie"


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_labels_and_the_width_of_a_batch_change_no_loss(seed: int) -> None:
    chance = random.Random(seed)
    labels = [ranking([[i] for i in chance.sample(range(4), 4)], str(n), strength=2) for n in range(5)]
    labels += [ranking([[0, 1, 2]], "tie")]
    rows = rows_of(*labels)
    for wide in (None, 8):
        batch = Collator(0, wide)([row.columns for row in rows])
        lengths = batch["attention_mask"].sum(1).tolist()
        answers = [batch["input_ids"][n, :length].tolist() for n, length in enumerate(lengths)]
        assert answers == [answer for row in rows for answer in row.answers]
        assert batch["input_ids"].size(1) % (wide or 1) == 0
    before = loss_of(rows, 0.5)
    chance.shuffle(rows)
    assert loss_of(rows, 0.5) == pytest.approx(before, abs=1e-5)


def test_processes_that_train_together_learn_the_threshold_of_ties(tmp_path: Path) -> None:
    """The threshold stands in the loss and not in the model's output: a process that waits for the gradients of a
    forward pass alone would stop with an error, as with an adapter it does."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(torch.nn.Linear(4, 1, bias=False))
        add_threshold(model[0], rows_of(ranking([[0, 1], [2]])))
        together = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        for _ in range(2):
            scores = together(torch.ones(3, 4)).squeeze(-1)
            threshold = threshold_parameter(model)
            assert threshold is not None
            (scores.sum() + threshold.exp().squeeze()).backward()
            assert threshold.grad is not None and threshold.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()
