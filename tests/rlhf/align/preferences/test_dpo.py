"""The real DPO stage on a tiny policy and imported preferences: it starts at the reference, and moves from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rlhf.align.preferences.dpo
import rlhf.align.preferences.learning
from rlhf.align.config.labelled import LOSSES
from rlhf.align.preferences.dpo import loss_at_reference
from rlhf.align.preferences.learning import resolve_auto
from rlhf.align.preferences.reference import StartsAtReference, compute_reference_logps
from trueup import runs
from trueup.data.records import Message, Preference, read_rows
from trueup.data.split import is_heldout
from trueup.errors import ConfigError
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.sampling import Decoding, sample
from trueup.models.scoring import completion_logps
from trueup.training.pairs import EncodedPair
from trueup.verify import verify


def test_it_starts_at_the_reference_and_learns_the_pairs(
    aligned: Callable[..., Any], metrics: Callable[..., Any]
) -> None:
    made, directory = aligned(max_steps=8)
    rows = metrics(directory)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(rows[0]["rewards/margins"]) < 1e-4
    assert rows[-1]["rewards/margins"] > 0.1 and rows[-1]["logps/chosen"] > rows[0]["logps/chosen"]
    change = json.loads((directory / "report.json").read_text())["logps_change_nats"]
    assert change["chosen"] > 0 > change["rejected"]
    assert {path.name for path in directory.iterdir()} == {
        "adapter",
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "model",
        "report.json",
        "steps",
        "trained_prompts.json",
        "trained_questions.jsonl",
    }
    assert verify(made.run_dir).problems == []


def test_adapters_are_kept_along_the_way_and_give_the_policies_of_those_steps(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(max_steps=8, keep_steps=3)
    asked = [Message(role="user", content="Tea or milk?")]
    tokens = [loading.load_base_tokenizer(made.config.model).encode("Tea is warm.")]

    def logp(saved: loading.SavedPolicy) -> float:
        return completion_logps(saved.load(made.config.model), [asked], tokens)[0]

    sft, steps = made.run_dir / "sft" / "model", directory / "steps"
    way = [logp(loading.SavedPolicy(sft, steps / f"step-{step}")) for step in (2, 4, 6)]
    assert sorted(path.name for path in steps.iterdir()) == ["step-2", "step-4", "step-6"]
    end = logp(loading.SavedPolicy(directory / "model"))
    assert logp(loading.SavedPolicy(sft)) < way[0] < way[1] < way[2] < end, (
        "the answer that was chosen becomes likelier"
    )
    assert logp(loading.SavedPolicy(sft, directory / "adapter")) == pytest.approx(end, abs=1e-3)


def test_prompts_that_only_the_judge_may_learn_from_are_not_trained_on(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(max_steps=1)
    before = json.loads((directory / "trained_prompts.json").read_text())
    split = {"heldout_fraction": 0.3, "judge_fraction": 0.4}
    _, directory = aligned(max_steps=1, split=split)
    after = json.loads((directory / "trained_prompts.json").read_text())
    assert 0 < len(after) < len(before) and set(after) < set(before)


def test_it_trains_on_no_heldout_pair(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(max_steps=1)
    pairs = read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)
    kept = [pair for pair in pairs if not is_heldout(pair.prompt, made.config.split)]
    assert 0 < len(kept) < len(pairs)
    assert json.loads((directory / "report.json").read_text())["pairs"] == len(kept)


def test_a_learning_rate_of_zero_leaves_the_policy_as_it_was(aligned: Callable[..., Any]) -> None:
    made, directory = aligned(max_steps=3, learning_rate=0)
    asked = [[Message(role="user", content=text)] for text in ("Tea or milk?", "What is warm?")]
    decoding = Decoding(8, top_k=20)
    before, after = (
        sample(loading.load_policy(path / "model", made.config.model), asked, decoding, 3, 8)
        for path in (runs.stage_dir(made.run_dir, "sft"), directory)
    )
    assert before == after


# ---- Keys are obeyed --------------------------------------------------------------------------------------------


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("sigmoid", lambda m, e: -(1 - e) * log_sigmoid(m) - e * log_sigmoid(-m)),  # cDPO
        ("robust", lambda m, e: (-(1 - e) * log_sigmoid(m) + e * log_sigmoid(-m)) / (1 - 2 * e)),
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_label_smoothing_is_in_the_loss_that_is_trained(
    aligned: Callable[..., Any],
    metrics: Callable[..., Any],
    loss_type: str,
    expected: Callable[[float, float], float],
    smoothing: float,
) -> None:
    _, directory = aligned(loss_type=loss_type, label_smoothing=smoothing, train_batch_size=1, max_steps=6)
    rows = metrics(directory)
    assert abs(rows[-1]["rewards/margins"]) > 0.1
    for row in rows:  # a pair a step, so that the loss is that of the one margin
        assert row["loss"] == pytest.approx(expected(row["rewards/margins"], smoothing), abs=1e-4)


@pytest.mark.parametrize("loss_type", [name for name, loss in LOSSES.items() if not loss.smooths])
def test_label_smoothing_is_refused_where_it_would_do_nothing(aligned: Callable[..., Any], loss_type: str) -> None:
    with pytest.raises(ConfigError, match=f"align: label_smoothing: has no meaning in loss_type {loss_type}; use sigm"):
        aligned(loss_type=loss_type, label_smoothing=0.1)


AT_REFERENCE = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": 0.25,  # (0 - 1 / (2 beta))^2 at beta 1
    "robust": math.log(2),
    "sigmoid_norm": math.log(2),
    "apo_zero": 1.0,  # (1 - 1/2) + 1/2
    "apo_down": 1.0,  # 1/2 + (1 - 1/2)
}


@pytest.mark.parametrize(("loss_type", "beta"), [(name, loss.beta) for name, loss in LOSSES.items()])
def test_every_loss_starts_at_the_reference_with_a_beta_of_its_own_and_learns(
    aligned: Callable[..., Any],
    metrics: Callable[..., Any],
    loss_type: str,
    beta: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, directory = aligned(loss_type=loss_type, max_steps=8)
    report = json.loads((directory / "report.json").read_text())
    assert report["schedule"]["beta"] == beta and report["margin_nats"] > 0.1
    said = capsys.readouterr().out
    assert f"beta         {beta:g}: " in said
    expected = AT_REFERENCE[loss_type]
    assert metrics(directory)[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert f"step 0       loss {expected:.4f} (expected {expected:.4f}), margin" in said


@pytest.mark.parametrize("loss_type", [*LOSSES, {"sigmoid": 1.0, "hinge": 0.5}])
def test_a_policy_that_is_not_its_reference_stops_the_stage(
    campaign: Callable[..., Any], tmp_path: Path, loss_type: Any
) -> None:
    config = resolve_auto(campaign(tmp_path, align={"loss_type": loss_type}).stages["align"], 1)
    names = [loss_type] if isinstance(loss_type, str) else loss_type
    expected = sum(AT_REFERENCE[name] * (1.0 if name == loss_type else loss_type[name]) for name in names)
    watch, args, state = (
        StartsAtReference(lambda logs: loss_at_reference(config), float(config.beta)),
        SimpleNamespace(bf16=False),
        SimpleNamespace(global_step=1),
    )
    watch.on_log(args, state, None, {"loss": expected, "rewards/margins": 0.0, "kl": 0.0})
    for loss, margin, kl in ((expected + 0.1, 0.0, 0.0), (expected, 0.1, 0.0), (expected, 0.0, 0.1)):
        with pytest.raises(AssertionError, match="at step 0 policy and reference differ"):
            watch.on_log(args, state, None, {"loss": loss, "rewards/margins": margin, "kl": kl})


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(("in_bf16", "nats", "stops"), [(True, 0.4, False), (True, 0.6, True), (False, 0.02, True)])
@pytest.mark.parametrize("what", ["margin", "KL"])
def test_margin_and_kl_are_held_to_nats_whatever_beta_is(
    beta: float, in_bf16: bool, nats: float, stops: bool, what: str
) -> None:
    watch = StartsAtReference(lambda logs: 0.5, beta, rounded_weights=in_bf16)
    logs = {"loss": 0.5, "rewards/margins": beta * nats if what == "margin" else 0.0, "kl": nats if what == "KL" else 0}
    with pytest.raises(AssertionError, match=f"{what} {nats:.4f} nats") if stops else nullcontext():
        watch.on_log(SimpleNamespace(bf16=False), SimpleNamespace(global_step=1), None, logs)


def test_losses_are_mixed_by_their_weights(aligned: Callable[..., Any], metrics: Callable[..., Any]) -> None:
    def first_loss(**weights: float) -> float:
        _, directory = aligned(loss_type=weights, max_steps=1)
        return metrics(directory)[0]["loss"]

    assert first_loss(sigmoid=1.0, apo_zero=0.5) == pytest.approx(math.log(2) + 0.5, abs=1e-4)
    imitation = first_loss(sigmoid=1.0, sft=0.2) - math.log(2)
    assert 0 < imitation == pytest.approx(first_loss(sigmoid=2.0, sft=0.4) / 2 - math.log(2), abs=1e-4)
    # Nats per token of random weights over the tiny vocabulary, by a fifth.
    assert imitation > 0.5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"loss_type": {"sft": 1.0}}, "loss_type: sft alone learns no preference: name a loss over pairs beside it"),
        (
            {"loss_type": {"sigmoid": 1.0, "ipo": 1.0}},
            "beta: auto has no one value for these losses \\(0.1 for sigmoid, 1 for ipo\\): give a number",
        ),
        (
            {"loss_type": {"sigmoid": 1.0, "robust": 1.0}, "label_smoothing": 0.1},
            "label_smoothing: sigmoid and robust take it in two ways",
        ),
        ({"loss_type": {"sigmoid": 1.0, "hinge": 1.0}, "label_smoothing": 0.1}, "no meaning in loss_type hinge"),
        (
            {"loss_type": {"sigmoid": 1.0, "sft": 0.2}, "trainer_args": {"use_weighting": True}},
            "trainer_args.use_weighting: weighs pairs, and sft in loss_type is no loss over pairs",
        ),
    ],
)
def test_a_mixture_that_would_not_be_what_it_says_is_refused(
    campaign: Callable[..., Any], tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        campaign(tmp_path, align=keys)


def test_dropout_of_the_adapter_is_as_the_config_says(aligned: Callable[..., Any], metrics: Callable[..., Any]) -> None:
    _, without = aligned(max_steps=2)
    before = metrics(without)
    _, directory = aligned(max_steps=2, lora={"r": 4, "lora_dropout": 0.5})
    rows = metrics(directory)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "a fresh adapter adds nothing, dropped or not"
    assert rows[0]["grad_norm"] != pytest.approx(before[0]["grad_norm"], rel=1e-2)


# ---- Learning from few labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "keys", "epochs", "rate"),
    [
        (75, {}, 5, 0.03 / 50),  # 10 steps a pass
        (15, {}, 5, 1e-3),  # 10 steps, and no step goes further than this
        (240, {}, 2, 0.03 / 60),
        (10_000, {}, 1, 5e-5),
        (75, {"full_finetuning": True}, 5, 0.003 / 50),
        (75, {"max_steps": 100}, 5, 0.03 / 100),
        (75, {"num_train_epochs": 1}, 1, 1e-3),
        (75, {"learning_rate": 2e-4}, 5, 2e-4),
    ],
)
def test_steps_and_learning_rate_follow_from_the_number_of_pairs(
    campaign: Callable[..., Any], tmp_path: Path, pairs: int, keys: dict[str, Any], epochs: float, rate: float
) -> None:
    auto = {"learning_rate": None, "max_steps": None, "train_batch_size": 8}
    config = resolve_auto(campaign(tmp_path, align={**auto, **keys}).stages["align"], pairs)
    assert config.num_train_epochs == epochs
    assert config.learning_rate == pytest.approx(rate, rel=0.05)


def test_what_it_chose_is_what_it_trains_with(
    aligned: Callable[..., Any], metrics: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = aligned(learning_rate=None, max_steps=None, train_batch_size=5)
    said = capsys.readouterr().out
    report = json.loads((directory / "report.json").read_text())
    rows, pairs = metrics(directory), report["pairs"]
    steps = 5 * math.ceil(pairs / 5)  # the last batch of a pass may not be full
    assert f"epochs       5 over {pairs} pairs in batches of 5: about 60 steps are wanted, and at most 5 passes" in said
    assert f"rate         0.001 over {steps} steps: the fewer the steps" in said
    assert (len(rows), rows[0]["learning_rate"]) == (steps, 1e-3)
    assert report["schedule"] == {"beta": 0.1, "learning_rate": 1e-3, "num_train_epochs": 5}


def findings(directory: Path) -> dict[str, str]:
    found = json.loads((directory / "manifest.json").read_text())["verdict"]["findings"]
    return {finding["code"]: finding["message"] for finding in found}


def test_a_training_whose_margins_stand_still_says_so(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(max_steps=3, learning_rate=1e-7)
    message = findings(directory)["margins_stand_still"]
    assert "which is next to nothing: raise align.learning_rate or align.num_train_epochs" in message
    _, control = aligned(max_steps=3, learning_rate=0)
    assert "margins_stand_still" not in findings(control), "a control is not meant to learn"


def test_held_out_pairs_are_read_before_the_merge_which_may_move_the_weights_elsewhere(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    of_stage, of_answers = rlhf.align.preferences.dpo, rlhf.align.preferences.learning
    for module, name in ((of_answers, "completion_logps"), (of_stage, "merged")):
        original = getattr(module, name)

        def told(*given: Any, name: str = name, original: Callable[..., Any] = original) -> Any:
            done.append(name)
            return original(*given)

        monkeypatch.setattr(module, name, told)
    _, directory = aligned(split={"heldout_fraction": 0.5}, max_steps=1)
    assert json.loads((directory / "report.json").read_text())["heldout_accuracy"]["n"]
    assert done == ["completion_logps", "completion_logps", "merged"]


def test_held_out_pairs_tell_whether_it_learnt_more_than_the_pairs(aligned: Callable[..., Any]) -> None:
    half = {"heldout_fraction": 0.5}
    _, directory = aligned(max_steps=12, split=half)
    learnt = json.loads((directory / "report.json").read_text())["heldout_accuracy"]
    assert learnt["value"] == 1.0 and learnt["ci_low"] > 0.5 and learnt["n"] >= 4  # one preference, in every pair
    assert not {"margins_stand_still", "heldout_not_above_chance"} & set(findings(directory))
    _, directory = aligned(max_steps=2, learning_rate=1e-9, split=half)
    report = json.loads((directory / "report.json").read_text())["heldout_accuracy"]
    assert report["value"] == 0.5 and report["ci_low"] < 0.5 < report["ci_high"], "rounding is no preference"
    assert "this does not exclude chance" in findings(directory)["heldout_not_above_chance"]


# ---- Recorded log-probabilities ---------------------------------------------------------------------------------


def test_recorded_log_probabilities_count_only_of_these_tokens_this_policy_and_this_precision(
    tiny_base: Path,
) -> None:
    policy = loading.load_base(ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu"))
    sft: Any = SimpleNamespace(sha256="this one")
    prompt = [Message(role="user", content="Tea or milk?")]
    ids = [policy.tokenizer.encode(text) for text in ("Tea is warm.", "Milk is cold.")]
    rows = [EncodedPair(encode_prompt(policy.tokenizer, prompt), *ids)]
    texts = [[Message(role="assistant", content=text)] for text in ("Tea is warm.", "Milk is cold.")]
    recorded = Preference(
        prompt=prompt,
        chosen=texts[0],
        rejected=texts[1],
        prompt_id="p",
        split="train",
        chosen_token_ids=ids[0],
        rejected_token_ids=ids[1],
        chosen_logp=-1.0,
        rejected_logp=-2.0,
        sampled_by="this one",
        sampler={"dtype": "float32"},
        label_id="l",
        source="human",
        annotator="a",
        created_utc="2026-01-01T00:00:00+00:00",
    )
    assert compute_reference_logps(policy, sft, [recorded], rows) == [(-1.0, -2.0)]
    truth = [completion_logps(policy, [prompt], [answer])[0] for answer in ids]
    changes: list[dict[str, Any]] = [
        {"sampler": {"dtype": "bfloat16"}},
        {"sampler": {}},
        {"sampled_by": "another"},
        {"chosen_token_ids": ids[1]},
        {"rejected_token_ids": None},
        {"chosen_logp": None},
    ]
    for change in changes:
        (found,) = compute_reference_logps(policy, sft, [recorded.model_copy(update=change)], rows)
        assert found == pytest.approx(truth, abs=1e-4), change
    rounded = loading.load_base(ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu", dtype="bfloat16"))
    for dtype in ("float32", "bfloat16"):
        (found,) = compute_reference_logps(
            rounded, sft, [recorded.model_copy(update={"sampler": {"dtype": dtype}})], rows
        )
        assert found == pytest.approx(truth, abs=1.0), "in bf16 no record counts"
