"""Several annotators: those who are often wrong count less, and the share of wrong labels is measured."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reward.train
import ui.label.run
from reward.loss import preference_loss
from trueup import runs
from trueup.data.records import Message, Preference, read_rows
from trueup.errors import DataError
from trueup.models import loading
from trueup.models.chat import encode_completion
from trueup.models.scoring import score
from trueup.stages import load_object
from trueup.statistics.intervals import bootstrap_mean
from trueup.statistics.reliability import best_accuracy, label_weight, right_probabilities

COLOURS = "red blue green black white brown".split()
RIGHT = {"ann": 0.95, "bob": 0.95}


def labels(
    seed: int, prompts: int, spammers: Sequence[str] = ("spam",), colours: Sequence[str] = COLOURS
) -> list[dict[str, Any]]:
    """Pairs of colours, of which the later one in the list is better. Ann and Bob share the prompts, and both label a
    third of them; spammers, who press keys at random, each give as many labels as these two together."""
    chance, rows = random.Random(seed), []
    for number in range(prompts):
        worse, better = sorted(chance.sample(colours, 2), key=colours.index)
        annotators = ["ann", "bob"] if number % 3 == 0 else [("ann", "bob")[number % 2]]
        for name in [*annotators, *(name for name in spammers for _ in annotators)]:
            sides = [f"It is {better}.", f"It is {worse}."]
            if chance.random() > RIGHT.get(name, 0.5):
                sides.reverse()
            rows.append({"prompt": f"{number}: which?", "chosen": sides[0], "rejected": sides[1], "annotator": name})
    return rows


@pytest.fixture
def labelled(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """A campaign with these labels; its SFT policy is the base model."""

    def make(rows: list[dict[str, Any]], folder: str = ".", heldout: float = 0.6, **sections: Any) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        jsonl(tmp_path / folder / "labels.jsonl", rows)
        label = {"source": "import", "path": "labels.jsonl"}
        made = campaign(tmp_path / folder, label=label, split={"heldout_fraction": heldout}, **sections)
        stage = runs.begin(made.stages["sft"])
        loading.save(loading.load_base(made.config.model), stage.dir / "model")
        stage.finish()
        ui.label.run.run(made.stages["label"])
        return made

    return make


@pytest.mark.parametrize("seed", range(3))
def test_who_labels_at_random_weighs_next_to_nothing(labelled: Callable[..., Any], seed: int) -> None:
    made = labelled(labels(seed, 150), reward={"annotator_weights": "reliability", "max_steps": 1})
    report = json.loads((reward.train.run(made.stages["reward"]) / "report.json").read_text())
    weights = report["learnt"]["annotator_weights"]
    assert weights["spam"] < 0.35 * min(weights["ann"], weights["bob"])
    train = read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)
    of_train = [weights[p.annotator] for p in train if p.split == "train"]
    assert sum(of_train) / len(of_train) == pytest.approx(1), "a step is as long as it was"


def fitted(gaps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scores (K,) that make the labels likeliest, held near 0 by a small penalty.

    gaps     (M, K) coefficients of the scores in each comparison
    weights  (M,)
    """
    scores = torch.zeros(gaps.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=100, line_search_fn="strong_wolfe")
    none = torch.zeros(len(gaps), dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        total = preference_loss(gaps @ scores, none, none.bool(), weights) + 0.05 * scores.square().sum()
        total.backward()
        return total

    optimiser.step(closure)
    return scores.detach()


def campaign_of(chance: np.random.Generator, count: int, prompts: int) -> dict[str, float]:
    """Shares of all pairs of `count` answers in the right order, by scores from labels of which a spammer gave half:
    with equal weights, with those that are measured, and without the spammer."""
    truth, votes, rows = chance.permutation(count), [], []
    for number in range(prompts):
        i, j = chance.choice(count, 2, replace=False)
        of_prompt: dict[str, list[bool]] = {}
        for name in [("ann", "bob")[number % 2], *(["ann", "bob"] if number % 3 == 0 else [])]:
            of_prompt[name] = [bool((truth[i] > truth[j]) == (chance.random() < RIGHT[name]))]
        of_prompt["spam"] = [bool(chance.random() < 0.5) for _ in of_prompt]
        votes.append(of_prompt)
        rows += [(i, j, name, vote) for name, own in of_prompt.items() for vote in own]
    gaps = torch.zeros(len(rows), count, dtype=torch.float64)
    for row, (i, j, _, vote) in zip(gaps, rows, strict=True):
        row[i], row[j] = (1, -1) if vote else (-1, 1)
    right = right_probabilities(votes, {})
    ways = {
        "equal": [1.0 for _ in rows],
        "measured": [label_weight(right[name]) for _, _, name, _ in rows],
        "without": [float(name != "spam") for _, _, name, _ in rows],
    }
    order = np.sign(truth[:, None] - truth)
    accuracies = {}
    for way, weights in ways.items():
        scores = fitted(gaps, torch.tensor(np.array(weights) / np.mean(weights))).numpy()
        accuracies[way] = float((np.sign(scores[:, None] - scores) == order).mean() - 1 / count) / (1 - 1 / count)
    return accuracies


@pytest.mark.parametrize("seed", range(3))
def test_measured_weights_bring_back_the_accuracy_that_labels_at_random_cost(seed: int) -> None:
    """One free score for each of 16 answers, 20 campaigns: paired, with a 95 % interval."""
    chance = np.random.default_rng(seed)
    campaigns = [campaign_of(chance, 16, 60) for _ in range(20)]
    lost = np.array([one["without"] - one["equal"] for one in campaigns])
    gained = np.array([one["measured"] - one["equal"] for one in campaigns])
    half = 1.96 * gained.std(ddof=1) / len(gained) ** 0.5
    print(f"lost {lost.mean():.3f}, brought back {gained.mean():.3f} +- {half:.3f}")
    assert lost.mean() > 0.03 and gained.mean() - half > 0
    assert gained.mean() > 0.6 * lost.mean()


HUES = "red blue green black white brown pink grey gold teal lime plum".split()


@pytest.mark.slow
def test_weights_bring_back_the_accuracy_of_a_trained_model_that_labels_at_random_cost(
    labelled: Callable[..., Any],
) -> None:
    """A reward model is trained on labels of which five spammers gave five sixths, with equal weights and with those
    that are measured, and orders all pairs of colours in a prompt that nobody labelled: three seeds, paired, with
    Student's 95 % interval over them."""
    accuracy: dict[str, list[float]] = {"equal": [], "reliability": []}
    keys = {"learning_rate": 5e-3, "train_batch_size": 32, "max_steps": -1, "num_train_epochs": 4, "max_length": 64}
    for seed in range(3):
        rows = labels(seed, 240, [f"spam {n}" for n in range(5)], HUES)
        for weights, by_seed in accuracy.items():
            section = {**keys, "annotator_weights": weights}
            made = labelled(rows, f"{weights}-{seed}", heldout=0.1, reward=section)
            model = loading.load_reward_model(reward.train.run(made.stages["reward"]) / "model", made.config.model)
            answers = [encode_completion(model.tokenizer, f"It is {colour}.") for colour in HUES]
            asked = [[Message(role="user", content="900: which?")]] * len(HUES)
            scores = np.array(score(model, asked, answers))
            better = scores[:, None] > scores  # the later one in the list is
            by_seed.append(float(better[np.tril_indices(len(HUES), -1)].mean()))
    gained = np.subtract(accuracy["reliability"], accuracy["equal"])
    interval = bootstrap_mean([[one] for one in gained], bounds=None)
    print(f"{accuracy}; brought back {interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    assert interval.low > 0


def test_measured_smoothing_is_the_share_of_wrong_labels_by_the_agreement_of_annotators(
    labelled: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"label_smoothing": "measured", "max_steps": 2}
    made = labelled(labels(0, 150, spammers=()), reward=keys, align={"algorithm": "dpo", **keys})
    said = json.loads((runs.stage_dir(made.run_dir, "label") / "report.json").read_text())
    expected = 1 - best_accuracy(said["agreement"])
    assert 0 < expected < 0.2
    reports = [
        json.loads((load_object(made.stages[stage].run)(made.stages[stage]) / "report.json").read_text())
        for stage in ("reward", "align")
    ]
    assert reports[0]["learnt"]["label_smoothing"] == pytest.approx(expected)
    assert reports[1]["label_smoothing"] == pytest.approx(expected), "cDPO's epsilon is the same"
    assert f"smoothing    {expected:.3f}: annotators agree in {said['agreement']:.1%}" in capsys.readouterr().out


def test_dpo_weighs_annotators_alike(labelled: Callable[..., Any]) -> None:
    keys = {"annotator_weights": "reliability", "max_steps": 2}
    made = labelled(labels(1, 150), reward=keys, align={"algorithm": "dpo", **keys})
    by_reward, by_align = (
        json.loads((load_object(made.stages[stage].run)(made.stages[stage]) / "report.json").read_text())
        for stage in ("reward", "align")
    )
    assert by_align["annotator_weights"] == by_reward["learnt"]["annotator_weights"]
    assert by_align["annotator_weights"]["spam"] < by_align["annotator_weights"]["ann"]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"annotator_weights": "reliability"}, "reward.annotator_weights: reliability is not measured: no two labels"),
        ({"label_smoothing": "measured"}, "reward.label_smoothing: measured: no two annotators put the same pair"),
    ],
)
def test_what_one_annotator_cannot_tell_is_an_error(
    labelled: Callable[..., Any], keys: dict[str, Any], problem: str
) -> None:
    made = labelled([row for row in labels(0, 60, spammers=()) if row["annotator"] == "ann"], reward=keys)
    with pytest.raises(DataError, match=problem):
        reward.train.run(made.stages["reward"])
    said = json.loads((runs.stage_dir(made.run_dir, "label") / "report.json").read_text())
    assert "reliability" not in said and "agreement" not in said
