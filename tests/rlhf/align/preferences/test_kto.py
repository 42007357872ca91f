"""KTO on a tiny policy: which answers are desirable, what they weigh, and a campaign to its verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from rlhf.align.preferences.kto import LabelledAnswer, answers_of, auto_weights, with_strangers
from rlhf.compare.schema import CompareReport
from trueup import runs
from trueup.data.records import Message
from trueup.errors import ConfigError, ModelError
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.scoring import completion_logps
from trueup.stages import load_object
from trueup.training import loop
from trueup.training.pairs import EncodedPair
from trueup.verify import verify


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ranked(i: int, *tiers: list[int]) -> dict[str, Any]:
    completions = ["Tea is warm.", "Milk is cold.", "Tea.", "No."]
    return {"prompt": f"Question {i}: tea or milk?", "completions": completions, "tiers": list(tiers)}


LABELS = [
    *(ranked(i, [0], [1]) for i in range(10)),
    *(ranked(10 + i, [0, 2]) for i in range(5)),
    *(
        {"prompt": f"Question {20 + i}?", "response_a": "Milk is cold.", "response_b": "No.", "winner": "both_bad"}
        for i in range(6)
    ),
]


# ---- Answers ----------------------------------------------------------------------------------------------------


def answered(label: str, chosen: list[int], rejected: list[int], ideal: bool = False) -> tuple[Any, EncodedPair]:
    return SimpleNamespace(label_id=label, prompt=[], ideal=ideal), EncodedPair([0], chosen, rejected)


def test_a_label_says_a_thing_of_an_answer_once_and_a_tie_that_is_bad_has_no_desirable_answer() -> None:
    train = [answered("a", [1], [2]), answered("a", [1], [3]), answered("a", [2], [3]), answered("b", [1], [2])]
    train += [answered("d", [9], [1], ideal=True), answered("d", [9], [2], ideal=True)]
    ties = [answered("c", [4], [5])]
    labelled: Any = SimpleNamespace(
        train=[pair for pair, _ in train],
        rows=[row for _, row in train],
        ties=[pair for pair, _ in ties],
        tied_rows=[row for _, row in ties],
    )
    answers = answers_of(labelled, [(-1.0, -2.0)] * 7)
    assert [(answer.completion_ids[0], answer.desirable) for answer in answers] == [
        *((1, True), (2, False), (3, False), (2, True)),  # of the ranking a
        *((1, True), (2, False)),
        (9, True),  # an ideal answer says nothing of those below it
        *((4, False), (5, False)),
    ]


def test_the_kl_is_estimated_by_answers_to_other_prompts(tiny_base: Path) -> None:
    policy = loading.load_base(ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu"))

    def answer(prompt: int, ids: tuple[int, ...]) -> LabelledAnswer:
        message = Message(role="user", content=f"Prompt {prompt}?")
        return LabelledAnswer([message], (prompt, 9), ids, True, 0.0)

    answers = [answer(1, (5, 6)), answer(1, (7,)), answer(2, (5,) * 7), answer(3, (8,))]
    paired = with_strangers(answers, policy, max_length=8, seed=0)
    assert {row.completion_ids for row in paired} == {row.completion_ids for row in answers}
    prompt_of = {row.completion_ids: row.prompt_ids for row in answers}
    for row in paired:
        assert prompt_of[row.stranger_ids] != row.prompt_ids
        assert len(row.stranger_ids) <= 6, "what does not fit is no stranger"
    expected = completion_logps(policy, [row.prompt for row in paired], [list(row.stranger_ids) for row in paired])
    assert [row.stranger_logp for row in paired] == pytest.approx(expected, abs=1e-5)
    for row in with_strangers(answers[:2], policy, max_length=8, seed=0):
        assert row.stranger_ids == row.completion_ids, "with one prompt an answer stands for itself"


@pytest.mark.parametrize("undesirable", [1, 3])
def test_strangers_are_desirable_and_undesirable_in_their_shares_and_each_is_read_once(
    tiny_base: Path, undesirable: int
) -> None:
    policy = loading.load_base(ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu"))
    answers = [
        LabelledAnswer([Message(role="user", content=f"Prompt {i}?")], (i,), (5 + i, 5 + place), place == 0, 0.0)
        for i in range(20)
        for place in range(1 + undesirable)
        for _annotator in range(2)
    ]
    rows_read = []
    policy.model.base_model.register_forward_pre_hook(
        lambda module, args, inputs: rows_read.append(len(inputs["input_ids"])), with_kwargs=True
    )
    is_desirable = {answer.completion_ids: answer.desirable for answer in answers}
    for seed in range(3):
        rows_read.clear()
        paired = with_strangers(answers, policy, 16, seed)
        share = sum(is_desirable[row.stranger_ids] for row in paired) / len(paired)
        assert share == pytest.approx(1 / (1 + undesirable), abs=0.1)
        assert len({row.stranger_ids for row in paired}) > 0.9 * len(is_desirable)
        assert sum(rows_read) == len({(row.prompt_ids, row.stranger_ids) for row in paired})
    assert paired == with_strangers(answers, policy, 16, seed), "an interrupted training goes on with the same ones"
    assert paired != with_strangers(answers, policy, 16, seed + 1)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "given", "weights"),
    [
        (10, 10, ("auto", "auto"), (1.0, 1.0)),
        (12, 10, ("auto", "auto"), (1.0, 1.0)),
        (10, 20, ("auto", "auto"), (2.0, 1.0)),
        (20, 10, ("auto", "auto"), (1.0, 1.5)),
        (10, 20, (1.0, "auto"), (1.0, 0.5)),
        (20, 10, ("auto", 1.0), (2 / 3, 1.0)),
        (10, 10, ("auto", 2.0), (2.0, 2.0)),
        (20, 10, (0.5, 3.0), (0.5, 3.0)),
    ],
)
def test_auto_weights_bring_both_kinds_into_the_range_of_the_paper(
    desirable: int, undesirable: int, given: tuple[Any, Any], weights: tuple[float, float]
) -> None:
    assert auto_weights(desirable, undesirable, *given) == pytest.approx(weights)
    if "auto" in given:
        ratio = weights[0] * desirable / (weights[1] * undesirable)
        assert 1 - 1e-9 <= ratio <= 4 / 3 + 1e-9


# ---- The stage --------------------------------------------------------------------------------------------------


def test_it_starts_at_the_reference_counts_what_it_read_and_learns(
    aligned: Callable[..., Any], metrics: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made, directory = aligned(algorithm="kto", labels=LABELS, max_steps=10, split={"heldout_fraction": 0.2})
    report = json.loads((directory / "report.json").read_text())
    assert report["desirable"] == report["pairs"]
    assert report["undesirable"] == report["pairs"] + 2 * report["both_bad"]
    assert report["both_bad"] > 0 and report["ties_left_out"] > 0
    weight = report["undesirable"] / report["desirable"]
    assert (report["desirable_weight"], report["undesirable_weight"]) == (pytest.approx(weight), 1.0)
    first = metrics(directory)[0]
    expected = 0.5 * (weight * first["desirable"] + 1 - first["desirable"])
    assert first["kl"] == pytest.approx(0, abs=1e-4) and first["loss"] == pytest.approx(expected, abs=1e-4)
    said = capsys.readouterr().out
    assert f"step 0       loss {expected:.4f} (expected {expected:.4f})" in said
    assert f"weights      {weight:.3g} for {report['desirable']} desirable answers, 1 for" in said
    assert report["margin_nats"] > 0.1 and report["logps_change_nats"]["chosen"] > 0
    assert report["heldout_accuracy"]["value"] > 0.5
    assert verify(made.run_dir).problems == []


def test_the_loss_that_is_trained_is_that_of_the_paper(
    aligned: Callable[..., Any], metrics: Callable[..., Any]
) -> None:
    _, directory = aligned(
        algorithm="kto",
        desirable_weight=1.5,
        undesirable_weight=0.5,
        train_batch_size=2,
        max_steps=8,
        labels=[{"prompt": f"Question {i}?", "chosen": "Tea.", "rejected": "Milk."} for i in range(8)],
    )
    rows = [row for row in metrics(directory) if "rewards/margins" in row]  # one answer of each kind
    assert len(rows) > 1 and any(row["kl"] > 0 for row in rows)
    for row in rows:
        z = 0.1 * row["kl"]
        good, bad = 1 - sigma(row["rewards/chosen"] - z), 1 - sigma(z - row["rewards/rejected"])
        assert row["loss"] == pytest.approx((1.5 * good + 0.5 * bad) / 2, abs=1e-4)


def test_one_answer_at_a_time_is_refused(aligned: Callable[..., Any]) -> None:
    with pytest.raises(
        ConfigError, match="per_device_train_batch_size: KTO estimates the KL over two or more answers at once"
    ):
        aligned(algorithm="kto", per_device_train_batch_size=1)


def test_two_answers_or_more_are_computed_at_once_where_the_batch_is_a_prime(
    aligned: Callable[..., Any],
) -> None:
    _, directory = aligned(algorithm="kto", train_batch_size=17, max_steps=1)
    assert json.loads((directory / "report.json").read_text())["algorithm"] == "kto"


def test_a_batch_of_which_a_device_gets_one_answer_is_refused(campaign: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"align\.train_batch_size: 2 rows cannot be shared by 2 processes, of which each"
    ):
        campaign(tmp_path, align={"algorithm": "kto", "train_batch_size": 2}, launch="ddp", processes=2)


@pytest.mark.parametrize("pairs", ["extremes", "nested", "all"])
def test_each_answer_of_a_ranking_that_is_all_bad_is_read_whatever_the_rule_for_pairs(
    aligned: Callable[..., Any], pairs: str
) -> None:
    own = {"both_bad": True, "source": "human", "annotator": "ann", "created_utc": "2026-01-01T00:00:00+00:00"}
    bad = [ranked(30 + i, [0, 1, 2, 3]) | own | {"label_id": f"l{i}", "prompt_id": f"p{i}"} for i in range(3)]
    labels = [*LABELS[:10], *bad]
    split = {"heldout_fraction": 0.0}
    _, directory = aligned(algorithm="kto", labels=labels, split=split, pairs=pairs, max_steps=1)
    report = json.loads((directory / "report.json").read_text())
    assert (report["desirable"], report["undesirable"]) == (10, 10 + 3 * 4)
    assert (report["both_bad"], report["ties_left_out"]) == (3 * 6, 0)


@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_an_interrupted_alignment_goes_on_to_the_weights_that_it_would_have_had(
    aligned: Callable[..., Any], algorithm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"algorithm": algorithm, "labels": LABELS, "max_steps": 6, "save_steps": 2}
    _, directory = aligned(**keys)
    expected = load_file(directory / "model" / "model.safetensors")
    (directory / "manifest.json").unlink()

    class Stops(loop.Watch):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            super().on_log(args, state, control, logs, **more)
            if state.global_step == 3:
                raise ModelError("interrupted")

    with monkeypatch.context() as patch, pytest.raises(ModelError, match="interrupted"):
        patch.setattr(loop, "Watch", Stops)
        aligned(**keys)
    capsys.readouterr()
    _, directory = aligned(**keys)
    assert "from checkpoint-2" in capsys.readouterr().out
    weights = load_file(directory / "model" / "model.safetensors")
    for name, weight in expected.items():
        assert weights[name].allclose(weight, atol=1e-6), name


def test_a_campaign_by_kto_comes_to_a_verdict(campaign: Callable[..., Any], tmp_path: Path) -> None:
    made = campaign(tmp_path, align={"algorithm": "kto"})
    for name in ("sft", "sample", "label", "reward", "align", "compare"):
        load_object(made.stages[name].run)(made.stages[name])
    report = runs.open_stage(made.run_dir, "compare").report(CompareReport)
    assert report.verdict.outcome and report.policies["aligned"].algorithm == "kto"
    assert verify(made.run_dir).problems == []
