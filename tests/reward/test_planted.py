"""Planted truths: labels are drawn from strengths that are known, and the reward model has to find what was planted.

Each prompt asks for a colour, and each answer names one; a colour's strength is its place in the list. People are drawn
from the model of Rao and Kupper, and a grade says how far apart the strengths are.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reward.train
import ui.label.run
from reward.loss import preference_loss, strict_loss
from trueup import runs
from trueup.data.records import Preference, read_rows
from trueup.data.split import is_heldout, opening_id
from trueup.models import loading
from trueup.training import loop

COLOURS = "red blue green black white brown pink grey gold teal lime plum".split()
STRENGTH = {colour: 0.3 * place for place, colour in enumerate(COLOURS)}


def judged(chance: random.Random, threshold: float) -> dict[str, Any]:
    """A label by the model of Rao and Kupper, in the columns of an import."""
    pair = chance.sample(COLOURS, 2)
    gap = STRENGTH[pair[0]] - STRENGTH[pair[1]]
    first, second = (1 / (1 + math.exp(threshold - sign * gap)) for sign in (1, -1))
    draw = chance.random()
    tiers = [[0], [1]] if draw < first else [[1], [0]] if draw < first + second else [[0, 1]]
    strength = 1 + min(2, int(abs(gap))) if len(tiers) == 2 else None
    texts = [f"It is {colour}." for colour in pair]
    return {"completions": texts, "tiers": tiers, "strength": strength}


Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Train:
    """The report of a reward model that is trained on such labels."""

    def trained(
        name: str, rows: list[dict[str, Any]], interrupt: Callable[[Callable[[], Any]], None] | None = None, **keys: Any
    ) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        numbered = [{"prompt": f"{n}: which?", **row} for n, row in enumerate(rows)]
        jsonl(tmp_path / name / "labels.jsonl", numbered)
        more = {"learning_rate": 3e-3, "train_batch_size": 16, "max_steps": -1, "num_train_epochs": 3, "max_length": 64}
        label = {"source": "import", "path": "labels.jsonl"}
        made = campaign(tmp_path / name, label=label, reward={**more, **keys}, split={"heldout_fraction": 0.3})
        stage = runs.begin(made.stages["sft"])
        loading.save(loading.load_base(made.config.model), stage.dir / "model")
        stage.finish()
        ui.label.run.run(made.stages["label"])
        if interrupt:
            interrupt(lambda: reward.train.run(made.stages["reward"]))
        report: dict[str, Any] = json.loads((reward.train.run(made.stages["reward"]) / "report.json").read_text())
        return report

    return trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_threshold_of_ties_is_found(train: Train, seed: int) -> None:
    chance = random.Random(seed)
    report = train("ties", [judged(chance, 1.0) for _ in range(700)], grade_margins=[0, 0, 0], num_train_epochs=4)
    assert report["learnt"]["tie_threshold"] == pytest.approx(1.0, abs=0.25)


def test_an_interrupted_training_goes_on_with_the_threshold_that_it_had_learnt(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(run: Callable[[], Any]) -> None:
        real = loop.Watch.on_log

        def on_log(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            real(self, args, state, control, **more)
            if state.global_step == 7:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop.Watch, "on_log", on_log)
            run()

    rows = [judged(random.Random(n), 1.0) for n in range(80)]
    keys = {"max_steps": 10, "save_steps": 3}
    whole, resumed = train("whole", rows, **keys), train("killed", rows, killed, **keys)
    assert resumed["learnt"] == pytest.approx(whole["learnt"], rel=1e-4)
    start = 2 * math.atanh(whole["learnt"]["ties"] / whole["learnt"]["labels"])
    assert abs(whole["learnt"]["tie_threshold"] - start) > 1e-3, "it is learnt, and not only counted"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_that_learnt_shuffled_labels_fails(train: Train, seed: int) -> None:
    chance, rows = random.Random(seed), []
    for _ in range(200):
        texts = [f"It is {colour}." for colour in chance.sample(COLOURS, 2)]
        rows.append({"completions": texts, "tiers": chance.choice([[[0], [1]], [[1], [0]]])})
    (finding,) = train("shuffled", rows)["findings"]
    assert finding["level"] == "fail" and finding["code"] in ("no_better_than_chance", "shuffled_labels_would_do")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_that_learnt_length_alone_is_exposed(train: Train, seed: int) -> None:
    """Of four pairs in five the longer answer is preferred, and of the others the shorter one."""
    chance, rows = random.Random(seed), []
    for number in range(300):
        texts = ["la " * size + "la." for size in sorted(chance.sample(range(1, 9), 2), reverse=True)]
        rows.append({"completions": texts, "tiers": [[1], [0]] if number % 5 == 0 else [[0], [1]]})
    report = train("length", rows)
    assert report["accuracy"]["value"] > 0.7, "it has learnt it"
    codes = {finding["code"] for finding in report["findings"]}
    assert "follows_length" in codes and codes & {"explained_by_a_rule", "not_told_from_a_rule"}


# ---- By the loss alone: one free score for each colour ----------------------------------------------------------


def graded(chance: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Preferred and other colour (M,), and grade (M,) by how far the first is seen above the second: its strength, and
    a logistic error of the eye."""
    pairs = np.array([chance.permutation(len(COLOURS))[:2] for _ in range(count)])
    seen = 0.3 * (pairs[:, 0] - pairs[:, 1]) + chance.logistic(size=count)
    pairs[seen < 0] = pairs[seen < 0, ::-1]
    return torch.tensor(pairs[:, 0]), torch.tensor(pairs[:, 1]), torch.tensor(np.digitize(abs(seen), [0.8, 2.0]))


def fitted(labels: tuple[torch.Tensor, ...], margins: tuple[float, ...]) -> torch.Tensor:
    """Scores (K,) that make the labels likeliest, held near 0 by a small penalty."""
    better, worse, grade = labels
    scores = torch.zeros(len(COLOURS), dtype=torch.float64, requires_grad=True)
    asked = torch.tensor(margins, dtype=torch.float64)[grade]
    optimiser = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        gaps = scores[better] - scores[worse]
        loss = preference_loss(gaps, asked, torch.zeros_like(better, dtype=torch.bool), torch.ones_like(gaps))
        total = loss + 0.01 * scores.square().sum()
        total.backward()
        return total

    optimiser.step(closure)
    return scores.detach()


def test_margins_by_grade_beat_none_on_held_out_likelihood() -> None:
    """The gain in nats of 30 campaigns of 100 labels each, paired, at each model's best temperature: margins widen all
    gaps, which says nothing about what was learnt."""
    gains = []
    for seed in range(30):
        chance = np.random.default_rng(seed)
        labels, heldout = graded(chance, 100), graded(chance, 1000)
        losses = []
        for margins in ((0.0, 0.0, 0.0), (1 / 3, 2 / 3, 1.0)):
            scores = fitted(labels, margins)
            gaps = scores[heldout[0]] - scores[heldout[1]]
            losses.append(min(strict_loss(gaps * factor).mean().item() for factor in np.geomspace(0.2, 3, 25)))
        gains.append(losses[0] - losses[1])
    mean, error = np.mean(gains), np.std(gains, ddof=1) / len(gains) ** 0.5
    assert mean - 1.96 * error > 0, f"{mean:.5f} +- {1.96 * error:.5f}"


# ---- What is read of ties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ties", "trained"), [("rao_kupper", True), ("leave_out", False)])
def test_a_prompt_that_has_ties_alone_is_recorded_as_trained_on_where_ties_are(
    campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path, ties: str, trained: bool
) -> None:
    pairs = [{"prompt": f"{n}: which?", "completions": ["It is red.", "It is blue."]} for n in range(12)]
    rows = [{**pair, "tiers": [[0, 1]] if n % 2 else [[0], [1]]} for n, pair in enumerate(pairs)]
    jsonl(tmp_path / "labels.jsonl", rows)
    label = {"source": "import", "path": "labels.jsonl"}
    made = campaign(tmp_path, label=label, reward={"max_steps": 2, "ties": ties}, split={"heldout_fraction": 0.2})
    stage = runs.begin(made.stages["sft"])
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    ui.label.run.run(made.stages["label"])
    directory = reward.train.run(made.stages["reward"])
    dialogues = set(json.loads((directory / runs.TRAINED).read_text()))
    tied = {
        opening_id(tie.prompt)
        for tie in read_rows(runs.stage_dir(made.run_dir, "label") / "ties.jsonl", Preference)
        if not is_heldout(tie.prompt, made.config.split)
    }
    assert tied and (tied <= dialogues if trained else not tied & dialogues)


@pytest.mark.parametrize(
    ("answers", "both_bad", "left", "reason"),
    [
        (["Red.", "Blue."], False, 1, None),
        (["Red.", " "], False, 0, "ties with an empty answer"),
        (["Red.", " "], True, 1, None),
        (["Red.", "Red."], False, 0, "identical ties"),
    ],
)
def test_a_tie_from_which_nothing_good_is_learnt_is_left_out_and_counted(
    campaign: Callable[..., Any],
    jsonl: Callable[..., Path],
    tmp_path: Path,
    answers: list[str],
    both_bad: bool,
    left: int,
    reason: str | None,
) -> None:
    tie = {"prompt": "Which?", "completions": answers, "tiers": [[0, 1]], "both_bad": both_bad}
    jsonl(tmp_path / "labels.jsonl", [tie, {"prompt": "And now?", "chosen": "Red.", "rejected": "Blue."}])
    made = campaign(tmp_path, label={"source": "import", "path": "labels.jsonl"})
    directory = ui.label.run.run(made.stages["label"])
    assert len(read_rows(directory / "ties.jsonl", Preference)) == left
    dropped = json.loads((directory / "report.json").read_text())["dropped"]
    assert {key for key, count in dropped.items() if count} == ({reason} if reason else set())
