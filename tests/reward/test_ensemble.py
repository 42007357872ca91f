"""The ensemble: heads around the trained one, which differ where the labels settled little."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import reward.train
import ui.label.run
from reward.ensemble import deviations
from reward.hidden import Place, read_features
from reward.probe import Standard, fit_directions, prompt_weights
from reward.report import RewardReport
from trueup import runs
from trueup.cli import main as trueup
from trueup.data.records import CandidateScores, CandidateSet, read_rows
from trueup.models import heads, loading
from trueup.models.config import ModelConfig
from trueup.models.loading import Loaded
from trueup.models.scoring import HeadScores, read_answers, score_answers, score_answers_by_heads
from trueup.stages import load_object
from trueup.training.pairs import EncodedPair
from trueup.verify import verify

PLACE = Place(2, "mean over the answer")


def test_the_heads_are_centred_fits_to_prompts_drawn_again_in_the_scale_of_the_trained_one() -> None:
    """Their covariance is the sandwich estimator's over prompts (White 1980), less what changes the scale alone."""
    random = np.random.default_rng(0)
    scale = np.array([1.0, 2.0, 0.5])
    pairs = random.normal(size=(600, 2, 3)) * scale
    prompts, ridge = [str(i // 2) for i in range(600)], 0.1
    swap = (pairs[:, 0] - pairs[:, 1]) @ [1.0, 0.2, -0.5] + random.logistic(size=600) < 0
    pairs = np.where(swap[:, None, None], pairs[:, ::-1], pairs)
    head = fit_directions(pairs, prompt_weights(prompts), [ridge])[0]
    margins = (pairs[:, 0] - pairs[:, 1]) @ head
    drawn = deviations(pairs, margins, prompts, ridge, 800, seed=0)
    assert drawn.sum(axis=0) == pytest.approx(0, abs=1e-8)
    standard = Standard.of(pairs)
    x, theta, p = standard.differences(pairs), head * standard.scale, 1 / (1 + np.exp(-margins))
    bread = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x / 600 + ridge * np.eye(3))
    slopes = ((p - 1)[:, None] * x).reshape(300, 2, 3).mean(axis=1)
    sizes = x.T @ x / 600
    along = np.eye(3) - np.outer(theta, sizes @ theta) / (theta @ sizes @ theta)
    expected = along @ bread @ np.cov(slopes.T) @ bread @ along.T / 300
    assert np.cov((drawn * standard.scale).T) == pytest.approx(expected, abs=0.15 * abs(expected).max())


def test_the_deviations_follow_the_seed_the_scale_of_the_trained_head_and_how_much_it_learnt_from() -> None:
    random = np.random.default_rng(0)
    pairs, margins, prompts = random.normal(size=(40, 2, 5)), random.normal(size=40), [str(i // 2) for i in range(40)]
    drawn = deviations(pairs, margins, prompts, 1.0, 3, seed=1)
    assert np.array_equal(drawn, deviations(pairs, margins, prompts, 1.0, 3, seed=1))
    assert not np.allclose(drawn, deviations(pairs, margins, prompts, 1.0, 3, seed=2))
    assert deviations(pairs, 7 * margins, prompts, 1.0, 3, seed=1) == pytest.approx(7 * drawn)
    assert deviations(pairs, margins, prompts, 1.0, 3, seed=1, observed=80) == pytest.approx(drawn / 2)
    assert not deviations(pairs, margins, ["one"] * 40, 1.0, 3, seed=1).any(), "there is nothing else to draw"


def test_a_heads_spread_is_the_standard_deviation_of_a_sample_and_their_mean_the_score() -> None:
    one = HeadScores(2.0, (-1.0, 0.0, 1.0))
    assert one.heads == (1.0, 2.0, 3.0) and one.spread == 1.0 == pytest.approx(np.std(one.heads, ddof=1))
    assert HeadScores(2.0).heads == () and HeadScores(2.0).spread == 0.0


# ---- Planted: what the labels knew and what they did not ---------------------------------------------------------


@pytest.fixture
def model(bases: Callable[[str], Path]) -> Loaded:
    return loading.new_reward_model(bases("plain"), ModelConfig(device="cpu"))


def texts(random: np.random.Generator, count: int, tokens: range) -> list[EncodedPair]:
    """Pairs of answers of these tokens."""
    return [
        EncodedPair(*(random.choice(tokens, size=random.integers(3, 9)).tolist() for _ in range(3)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_heads_differ_more_on_answers_unlike_those_that_were_labelled(model: Loaded, seed: int) -> None:
    random = np.random.default_rng(seed)
    known, familiar = (texts(random, count, range(5, 10)) for count in (300, 100))
    strange = texts(random, 100, range(120, 250))
    features = [read_features(model, rows, [2])[PLACE] for rows in (known, familiar, strange)]
    taste = random.normal(size=32) / features[0].std(axis=(0, 1))
    swap = (features[0][:, 0] - features[0][:, 1]) @ taste < 0
    pairs, prompts = np.where(swap[:, None, None], features[0][:, ::-1], features[0]), [str(i) for i in range(300)]
    head = fit_directions(pairs, prompt_weights(prompts), [0.1])[0]
    drawn = deviations(pairs, (pairs[:, 0] - pairs[:, 1]) @ head, prompts, 0.1, 16, seed)
    near, far = ((rows @ drawn.T).std(axis=-1, ddof=1).mean() for rows in features[1:])
    assert far > 1.2 * near


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_heads_agree_where_labels_agree_and_not_where_they_contradict_each_other_or_are_none(
    model: Loaded, seed: int
) -> None:
    """Answers in words of three kinds: one is labelled by a taste, one by chance, and one is not labelled."""
    random = np.random.default_rng(seed)
    kinds = [range(5, 10), range(120, 130), range(200, 250)]
    known = [read_features(model, texts(random, 150, words), [2])[PLACE] for words in kinds[:2]]
    taste = random.normal(size=32) / known[0].std(axis=(0, 1))
    swap = np.concatenate([(known[0][:, 0] - known[0][:, 1]) @ taste < 0, random.random(150) < 0.5])
    pairs, prompts = np.concatenate(known), [str(i) for i in range(300)]
    pairs = np.where(swap[:, None, None], pairs[:, ::-1], pairs)
    head = fit_directions(pairs, prompt_weights(prompts), [0.1])[0]
    drawn = deviations(pairs, (pairs[:, 0] - pairs[:, 1]) @ head, prompts, 0.1, 16, seed)

    def share_agreed(words: range) -> float:
        rows = read_features(model, texts(random, 100, words), [2])[PLACE]
        signs = np.sign((rows[:, 0] - rows[:, 1]) @ (head + drawn).T)
        return float((signs == signs[:, :1]).all(axis=1).mean())

    settled, contradicted, unlabelled = map(share_agreed, kinds)
    assert settled > contradicted + 0.1 and settled > unlabelled + 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_the_heads_disagree_the_mean_is_wrong_more_often(seed: int) -> None:
    random = np.random.default_rng(seed)
    taste = random.normal(size=20)
    answers = random.normal(size=(2600, 2, 20))
    gaps = (answers[:, 0] - answers[:, 1]) @ taste + random.logistic(size=2600)
    pairs = np.where((gaps < 0)[:, None, None], answers[:, ::-1], answers)
    known, heldout, prompts = pairs[:100], pairs[100:], [str(i) for i in range(100)]
    head = fit_directions(known, prompt_weights(prompts), [0.1])[0]
    drawn = deviations(known, (known[:, 0] - known[:, 1]) @ head, prompts, 0.1, 3, seed)
    differences = heldout[:, 0] - heldout[:, 1]
    signs = np.sign(differences @ (head + drawn).T)
    agreed, right = (signs == signs[:, :1]).all(axis=1), differences @ head > 0
    assert right[agreed].mean() > right[~agreed].mean() + 0.1


def test_what_differs_by_no_answer_moves_no_head() -> None:
    pairs = np.random.default_rng(0).normal(size=(30, 2, 4))
    pairs[..., 2] = 7.0
    drawn = deviations(pairs, np.zeros(30), [str(i) for i in range(30)], 1.0, 3, seed=0)
    assert drawn[:, 2].tolist() == [0.0] * 3 and np.isinf(Standard.of(pairs).scale[2])
    assert pairs.mean(axis=(0, 1)) @ drawn.T == pytest.approx(0, abs=1e-6), "no head shifts all scores"


# ---- The stage --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def make(folder: Path = tmp_path, split: dict[str, float] | None = None, **keys: Any) -> tuple[Any, Path]:
        folder.mkdir(exist_ok=True)
        made = campaign(folder, reward=keys, **({"split": split} if split else {}))
        if runs.find_stage(made.run_dir, "sft") is None:
            for stage in ("sft", "sample"):
                load_object(made.stages[stage].run)(made.stages[stage])
            ui.label.run.run(made.stages["label"])
        return made, reward.train.run(made.stages["reward"])

    return make


def sampled(made: Any) -> tuple[list[Any], list[Any]]:
    """Prompts and answers of the sample stage."""
    rows = read_rows(runs.stage_dir(made.run_dir, "sample") / "candidates.jsonl", CandidateSet)
    return [row.prompt for row in rows for _ in row.candidates], [one for row in rows for one in row.candidates]


def test_the_mean_of_the_heads_is_the_score_that_plain_transformers_reads_in_the_same_folder(
    run: Callable[..., Any], tmp_path: Path, jsonl: Callable[..., Path]
) -> None:
    made, directory = run(ensemble=3, score_candidates=True)
    _, alone = run(tmp_path / "alone")
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (directory, alone)]
    assert weights[0].keys() == weights[1].keys(), "the heads are a file of their own"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "they change no score"
    prompts, answers = sampled(made)
    model = loading.load_reward_model(directory / "model", made.config.model)
    plain = AutoModelForSequenceClassification.from_pretrained(directory / "model").eval()
    readings = [one for one in read_answers(model, prompts, answers) if one]
    with torch.inference_mode():
        direct = [plain(torch.tensor([one.prompt + one.answer])).logits.item() for one in readings]
    scores = score_answers_by_heads(model, prompts, answers)
    assert [np.mean(one.heads) for one in scores if one] == pytest.approx(direct, abs=1e-5)
    assert all(one and one.spread > 0 and len(one.heads) == 3 for one in scores)
    written = [row for row in read_rows(directory / "candidate_scores.jsonl", CandidateScores) if row.heads]
    by_head = [one for row in written for one in row.heads or () if one]
    assert np.array(by_head) == pytest.approx(np.array([one.heads for one in scores if one]), abs=1e-4)
    report = runs.open_stage(made.run_dir, "reward").report(RewardReport)
    assert report.agreement and report.agreement.heads == 3 and report.agreement.spread > 0
    assert "Does it know where it is unsure?" in (directory / "report.html").read_text()
    assert verify(made.run_dir).problems == []
    two = [one.model_copy(update={"token_ids": [], "finished": True}) for one in answers[:2]]
    asked = [message.model_dump() for message in prompts[0]]
    jsonl(tmp_path / "pairs.jsonl", [{"prompt": asked, "completions": [one.text for one in two], "ranks": [1, 2]}])
    given = [str(directory / "model"), str(tmp_path / "pairs.jsonl"), "--to", str(tmp_path / "scores.jsonl")]
    assert trueup(["reward", "score", *given]) == 0
    spreads = [json.loads(line)["spread"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    expected = score_answers_by_heads(model, prompts[:2], two)
    assert spreads == pytest.approx([one.spread for one in expected if one], abs=1e-4)
    file = directory / "model" / heads.ENSEMBLE
    file.write_text(file.read_text().replace("[[", "[[0.5, ", 1))
    assert verify(made.run_dir).problems, "the heads are sealed with the model"
    assert not heads.has_ensemble(alone / "model")
    assert "agreement" not in json.loads((alone / "report.json").read_text())


@pytest.mark.parametrize("keys", [{"start": "probe"}, {"full_finetuning": True}], ids=str)
def test_a_stage_that_was_killed_behind_its_training_makes_the_same_heads(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    keys = {"ensemble": 4, "max_steps": 4, "save_steps": 2, **keys}
    _, whole = run(tmp_path / "whole", **keys)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reward.train, "report_card", killed)
        run(tmp_path / "killed", **keys)
    _, resumed = run(tmp_path / "killed", **keys)
    one, other = (heads_in(folder) for folder in (whole, resumed))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-2, atol=1e-3 * weight.abs().max().item())


def heads_in(folder: Path) -> dict[str, torch.Tensor]:
    values = json.loads((folder / "model" / heads.ENSEMBLE).read_text())
    return {name: torch.tensor(rows) for name, rows in values.items()}


def test_a_base_brings_its_heads_which_are_used_with_it_and_lost_with_its_training(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    made, directory = run(ensemble=3)
    base = {"name": str(directory / "model")}
    keys = {"lora": None, "train_batch_size": None, "max_steps": None}
    _, as_it_is = run(tmp_path / "as it is", base=base, learning_rate=0, **keys)
    assert (as_it_is / "model" / heads.ENSEMBLE).read_bytes() == (directory / "model" / heads.ENSEMBLE).read_bytes()
    prompts, answers = sampled(made)
    models = [loading.load_reward_model(folder / "model", made.config.model) for folder in (directory, as_it_is)]
    assert score_answers(models[0], prompts, answers) == pytest.approx(score_answers(models[1], prompts, answers))
    _, trained = run(tmp_path / "trained", base=base)
    assert not heads.has_ensemble(trained / "model")
    _, again = run(tmp_path / "again", base=base, ensemble=2)
    assert len(heads_in(again)["head_deviations"]) == 2
