"""Grades, ties and rankings count as the keys say: the loss by a second form of each, and what the stage trains."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.align.config.labelled import LOSSES
from rlhf.align.preferences.losses import Batch, imitation_loss, pair_losses, weighted_loss
from rlhf.align.preferences.trainer import columns_of
from trueup.data.pairs import PairRule, choose_pairs
from trueup.errors import ConfigError

# Nats, tokens: hand-picked, of both signs.
CHOSEN, REJECTED = [2.0, -1.0, 0.5, 3.0], [1.0, 0.5, -2.5, 3.0]
CHOSEN_TOKENS, REJECTED_TOKENS = [4, 2, 5, 3], [2, 5, 10, 6]


def batch(ties: tuple[int, ...] = (), offsets: float = 0.0, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Batch:
    return Batch(
        chosen=torch.tensor(CHOSEN),
        rejected=torch.tensor(REJECTED),
        chosen_tokens=torch.tensor(CHOSEN_TOKENS),
        rejected_tokens=torch.tensor(REJECTED_TOKENS),
        is_tie=torch.tensor([i in ties for i in range(4)]),
        offsets=torch.tensor([0.0 if i in ties else offsets for i in range(4)]),
        weights=torch.tensor(weights),
    )


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


SECOND_FORMS: dict[str, Callable[[float, float, int, int, float, float], float]] = {
    "sigmoid": lambda c, r, n, m, b, e: -(1 - e) * math.log(sigma(b * (c - r))) - e * math.log(sigma(b * (r - c))),
    "hinge": lambda c, r, n, m, b, e: max(0.0, 1 - b * (c - r)),
    "ipo": lambda c, r, n, m, b, e: (c / n - r / m - 1 / (2 * b)) ** 2,
    "robust": lambda c, r, n, m, b, e: (
        ((1 - e) * -math.log(sigma(b * (c - r))) - e * -math.log(sigma(b * (r - c)))) / (1 - 2 * e)
    ),
    "sigmoid_norm": lambda c, r, n, m, b, e: (
        -(1 - e) * math.log(sigma(b * (c / n - r / m))) - e * math.log(1 - sigma(b * (c / n - r / m)))
    ),
    "apo_zero": lambda c, r, n, m, b, e: sigma(-b * c) + sigma(b * r),
    "apo_down": lambda c, r, n, m, b, e: sigma(b * c) + sigma(b * (r - c)),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_strict_pair_equals_its_second_form(name: str, smoothing: float) -> None:
    columns = zip(CHOSEN, REJECTED, CHOSEN_TOKENS, REJECTED_TOKENS, strict=True)
    expected = [SECOND_FORMS[name](*column, 0.7, smoothing) for column in columns]
    assert pair_losses(batch(), name, 0.7, smoothing, False).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_an_answer_without_a_token_has_a_loss_and_a_slope(name: str) -> None:
    chosen = torch.tensor(CHOSEN, requires_grad=True)
    nothing = replace(batch(), chosen=chosen, rejected=torch.zeros(4), rejected_tokens=torch.zeros(4, dtype=torch.long))
    losses = pair_losses(nothing, name, 0.7, 0.0, False)
    losses.sum().backward()
    assert losses.isfinite().all() and chosen.grad is not None and chosen.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_at_the_reference_is_that_of_the_table(name: str) -> None:
    at_reference = pair_losses(batch().at_reference(), name, 0.7, 0.0, False)
    assert at_reference.tolist() == pytest.approx([LOSSES[name].at_reference(0.7)] * 4, abs=1e-6)


def test_a_tie_is_half_a_preference_for_each_answer() -> None:
    strict = pair_losses(batch(), "sigmoid", 0.7, 0.0, False)
    turned = pair_losses(replace(batch(), chosen=batch().rejected, rejected=batch().chosen), "sigmoid", 0.7, 0.0, False)
    tied = pair_losses(batch(ties=(0, 1, 3)), "sigmoid", 0.7, 0.0, False)
    assert tied[[0, 1, 3]].tolist() == pytest.approx(((strict + turned) / 2)[[0, 1, 3]].tolist(), abs=1e-6)
    assert tied[2] == strict[2]
    assert tied[3] == pytest.approx(math.log(2), abs=1e-6), "least where both gained alike"


def test_davidsons_three_outcomes_are_those_of_strengths_and_their_geometric_mean() -> None:
    won = pair_losses(batch(), "sigmoid", 0.7, 0.0, True)
    turned = replace(batch(), chosen=batch().rejected, rejected=batch().chosen)
    lost = pair_losses(turned, "sigmoid", 0.7, 0.0, True)
    tied = pair_losses(batch(ties=(0, 1, 2, 3)), "sigmoid", 0.7, 0.0, True)
    for i, (c, r) in enumerate(zip(CHOSEN, REJECTED, strict=True)):
        mine, other = math.exp(0.7 * c), math.exp(0.7 * r)
        total = mine + other + 2 * math.sqrt(mine * other)
        assert won[i] == pytest.approx(-math.log(mine / total), abs=1e-6)
        assert tied[i] == pytest.approx(-math.log(2 * math.sqrt(mine * other) / total), abs=1e-6)
    assert (torch.exp(-won) + torch.exp(-lost) + torch.exp(-tied)).tolist() == pytest.approx([1.0] * 4, abs=1e-6)
    assert torch.exp(-tied[3]) == pytest.approx(0.5, abs=1e-6), "answers that are equally good are tied half the time"


def test_an_offset_asks_for_a_margin_of_its_size() -> None:
    losses = pair_losses(batch(offsets=math.log(3)), "sigmoid", 0.7, 0.0, False)
    # -log sigma(x - log 3) = log(1 + 3 e^-x)
    expected = [math.log(1 + 3 * math.exp(-0.7 * (c - r))) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_imitation_reads_strict_pairs_alone_and_is_a_mean_over_tokens() -> None:
    logps = torch.tensor([-8.0, -1.0, -20.0, -6.0])
    assert imitation_loss(batch(), logps) == pytest.approx(35 / 14, abs=1e-6)
    assert imitation_loss(batch(ties=(2,), weights=(2.0, 1.0, 9.0, 1.0)), logps) == pytest.approx(23 / 13, abs=1e-6)


# ---- Columns ----------------------------------------------------------------------------------------------------


def pairs(*labels: str, strength: int | None = None) -> list[Any]:
    return [SimpleNamespace(label_id=label, strength=strength, annotator=f"of {label}") for label in labels]


def labelled(train: list[Any], ties: list[Any] | None = None) -> Any:
    return SimpleNamespace(train=train, ties=ties or [])


def asked(**keys: Any) -> Any:
    return SimpleNamespace(**{"grades": "leave_out", "pair_weight": "equal", "ties": "half", **keys})


def test_the_weighted_loss_is_the_mean_over_labels_of_the_mean_over_their_pairs() -> None:
    rows = columns_of(asked(pair_weight="per_label"), labelled(pairs("a", "b", "b"), pairs("b")), {})
    whole = batch(ties=(3,), weights=tuple(float(row["weights"]) for row in rows))
    losses = pair_losses(whole, "sigmoid", 0.7, 0.0, False).tolist()
    expected = (losses[0] + sum(losses[1:]) / 3) / 2
    assert weighted_loss(whole, "sigmoid", 0.7, 0.0, False) == pytest.approx(expected, abs=1e-6)


def test_a_grade_is_an_offset_or_a_weight_and_what_nobody_graded_counts_as_without() -> None:
    graded = labelled([pair for grade in (1, 2, 3, None) for pair in pairs("a", strength=grade)], pairs("t"))
    offsets = [row["offsets"] for row in columns_of(asked(grades="offset"), graded, {})]
    assert offsets == pytest.approx([0.0, math.log(2), math.log(3), 0.0, 0.0], abs=1e-6)
    weights = [float(row["weights"]) for row in columns_of(asked(grades="weight"), graded, {})]
    assert weights == pytest.approx([0.5, 1.0, 1.5, 1.0, 1.0], abs=1e-6)
    assert [row["is_tie"] for row in columns_of(asked(), graded, {})] == [False] * 4 + [True]


@pytest.mark.parametrize("rule", ["all", "extremes", "nested"])
def test_rankings_of_any_size_weigh_alike_whatever_rule_chose_their_pairs(rule: PairRule) -> None:
    sizes = {"two": 2, "four": 4, "five": 5}
    train: Any = [
        SimpleNamespace(
            label_id=name,
            strength=None,
            annotator="me",
            chosen_rank=i,
            rejected_rank=j,
            chosen=[SimpleNamespace(content=str(i))],
            rejected=[SimpleNamespace(content=str(j))],
        )
        for name, size in sizes.items()
        for i in range(size)
        for j in range(i + 1, size)
    ]
    chosen = choose_pairs(train, rule)
    rows = columns_of(asked(pair_weight="per_label"), labelled(chosen), {})
    together = dict.fromkeys(sizes, 0.0)
    for pair, row in zip(chosen, rows, strict=True):
        together[pair.label_id] += row["weights"]
    assert list(together.values()) == pytest.approx([len(chosen) / 3] * 3), "1 together, scaled to 1 a pair"


def test_labels_weigh_by_their_annotators_and_one_on_average() -> None:
    rows = columns_of(asked(), labelled(pairs("a", "b"), pairs("c")), {"of a": 0.5, "of b": 1.5})
    assert [row["weights"] for row in rows] == pytest.approx([0.5, 1.5, 1.0])
    rows = columns_of(asked(), labelled(pairs("a", "b")), {"of a": 0.0, "of b": 4.0})
    assert [row["weights"] for row in rows] == pytest.approx([0.0, 2.0])


# ---- The stage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", [*LOSSES, {"sigmoid": 1.0, "sft": 0.3}])
def test_where_all_weights_are_1_the_loss_is_that_of_trl(
    aligned: Callable[..., Any], metrics: Callable[..., Any], loss_type: Any
) -> None:
    _, directory = aligned(loss_type=loss_type, max_steps=4)
    of_trl = metrics(directory)
    _, directory = aligned(loss_type=loss_type, max_steps=4, pair_weight="per_label")  # a pair is all of its label
    ours = metrics(directory)
    for name in ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in of_trl], abs=1e-6, rel=1e-5), name


def ranked(i: int, *tiers: list[int], **more: Any) -> dict[str, Any]:
    completions = ["Tea is warm.", "Milk is cold.", "Tea.", "No."]
    return {"prompt": f"Question {i}: tea or milk?", "completions": completions, "tiers": list(tiers), **more}


LABELS = [
    *(ranked(i, [0], [1], strength=1 + i % 3) for i in range(9)),
    *(ranked(10 + i, [0], [1], [2], [3]) for i in range(6)),
    *(ranked(20 + i, [0, 2]) for i in range(6)),
]


def test_ties_grades_and_rankings_change_what_is_trained_as_their_keys_say(
    aligned: Callable[..., Any], metrics: Callable[..., Any]
) -> None:
    reports, rows = {}, {}
    for name, keys in {
        "neither": {},
        "half": {"ties": "half"},
        "davidson": {"ties": "davidson"},
        "offset": {"grades": "offset"},
        "weight": {"grades": "weight"},
        "label": {"pair_weight": "per_label"},
    }.items():
        _, directory = aligned(labels=LABELS, max_steps=3, **keys)
        reports[name], rows[name] = json.loads((directory / "report.json").read_text()), metrics(directory)
    ties = reports["neither"]["ties_left_out"]
    assert ties and reports["neither"]["ties"] == 0
    for name in ("half", "davidson"):
        assert (reports[name]["ties"], reports[name]["ties_left_out"]) == (ties, 0)
        assert reports[name]["pairs"] == reports["neither"]["pairs"]
    assert "loss/at_reference" not in rows["neither"][0], "TRL's own trainer, untouched"
    for name in ("half", "davidson", "offset", "weight", "label"):
        first = rows[name][0]
        assert first["loss"] == pytest.approx(first["loss/at_reference"], abs=1e-4)
        assert reports[name]["last"]["loss"] != pytest.approx(reports["neither"]["last"]["loss"], abs=1e-6)
    assert rows["half"][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert math.log(2) < rows["davidson"][0]["loss"] <= math.log(4) + 1e-4, "-log 1/4 of a win, -log 1/2 of a tie"


@pytest.mark.parametrize("ties", ["half", "davidson"])
def test_a_training_whose_steps_held_ties_alone_says_that_nothing_tells_its_margin(
    aligned: Callable[..., Any], ties: str
) -> None:
    labels = [ranked(0, [0], [1]), *(ranked(1 + i, [0, 1, 2, 3]) for i in range(12))]
    split = {"heldout_fraction": 0.0}
    _, directory = aligned(labels=labels, split=split, max_steps=1, train_batch_size=1, ties=ties)
    report = json.loads((directory / "report.json").read_text())
    assert (report["ties"], report["pairs"]) == (72, 1)
    assert report["margin_nats"] is None and report["logps_change_nats"] is None and report["last"] == {}
    found = json.loads((directory / "manifest.json").read_text())["verdict"]["findings"]
    assert (
        "raise align.max_steps or align.train_batch_size" in {row["code"]: row["message"] for row in found}["no_margin"]
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ties": "half", "loss_type": "hinge"}, "ties: half has no meaning in loss_type hinge; use sigmoid or sigmoi"),
        ({"grades": "offset", "loss_type": "ipo"}, "grades: offset has no meaning in loss_type ipo; use sigmoid or s"),
        ({"ties": "davidson", "label_smoothing": 0.1}, "ties: davidson goes with no label_smoothing"),
        ({"grades": "offset", "label_smoothing": 0.1}, "grades: offset goes with no label_smoothing"),
        ({"grades": "offset", "ties": "davidson"}, "grades: offset has no meaning with ties: davidson"),
        (
            {"pair_weight": "per_label", "trainer_args": {"use_weighting": True}},
            "trainer_args.use_weighting: does nothing beside grades, pair_weight, annotator_weights or ties",
        ),
    ],
)
def test_what_the_loss_does_not_know_is_refused(
    campaign: Callable[..., Any], tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        campaign(tmp_path, align=keys)


def test_a_key_that_no_label_answers_is_told(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(max_steps=1, ties="half", grades="weight")
    found = json.loads((directory / "manifest.json").read_text())["verdict"]["findings"]
    messages = {finding["code"]: finding["message"] for finding in found}
    assert messages["no_ties"] == "align.ties: half changes nothing: no label to train on has any"
    assert messages["no_grades"] == "align.grades: weight changes nothing: no label to train on has any"
