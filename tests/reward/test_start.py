"""The start as a probe: what is kept out of training decides, and what is saved scores as the probe does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import another_base
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import reward.start
import reward.train
import ui.label.run
from reward.card import evaluate
from reward.check import check_rows
from reward.comparisons import Collator, label_rows
from reward.hidden import Place, read_features
from reward.probe import fit_probe
from reward.report import PairScore, RewardReport
from reward.start import (
    LEAST_OPENINGS,
    KeepBest,
    Kept,
    TrainingPairs,
    kept_openings,
    loss_at_best_temperature,
    start_at,
)
from reward.trainer import build_trainer
from trueup import runs
from trueup.checking.rows import Rows
from trueup.data.records import Message, Preference, prompt_id, read_rows
from trueup.data.split import is_heldout, opening_id
from trueup.errors import ConfigError
from trueup.exporting.export import _scoring
from trueup.exporting.portable import make_portable
from trueup.models import heads, loading
from trueup.models.chat import encode_completion
from trueup.models.config import ModelConfig
from trueup.models.scoring import Reading, score, score_readings
from trueup.training.adapters import under_adapter
from trueup.training.loop import read_metrics
from trueup.training.pairs import EncodedPair
from trueup.verify import verify

PLACES = [Place(layers, pooling) for layers in (1, 2) for pooling in ("last token", "mean over the answer")]


def rows(count: int = 12) -> list[EncodedPair]:
    draw = np.random.default_rng(0)
    return [
        EncodedPair(*(draw.integers(5, 250, size=draw.integers(1, 9)).tolist() for _ in range(3))) for _ in range(count)
    ]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.layers}, {place.pooling}")
def test_at_its_start_and_after_loading_it_scores_as_the_probe_whose_direction_its_head_is(
    bases: Callable[[str], Path], tmp_path: Path, place: Place
) -> None:
    config = ModelConfig(device="cpu")
    model = loading.new_reward_model(bases("plain"), config)
    pairs = rows()
    features = read_features(model, pairs, [1, 2])
    probe = fit_probe({place: features[place]}, [str(i) for i in range(len(pairs))], seed=0)
    expected = probe.scores(features).ravel()
    start_at(model, probe)
    readings = [
        Reading(tuple(row.prompt_ids), tuple(ids)) for row in pairs for ids in (row.chosen_ids, row.rejected_ids)
    ]
    assert score_readings(model, readings) == pytest.approx(expected, abs=1e-5)
    loading.save(model, tmp_path / "model")
    again = loading.load_reward_model(tmp_path / "model", config)
    assert len(again.model.base_model.layers) == again.model.config.num_hidden_layers == place.layers
    assert score_readings(again, readings) == pytest.approx(expected, abs=1e-5)
    policy = loading.load_base(ModelConfig(name=str(bases("plain")), device="cpu")).model
    assert heads.fits_policy(tmp_path / "model", policy) == (place == Place(2, "last token")), "PPO shares its base"


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma3_text", "mistral", "olmo2"])
def test_a_trunk_is_cut_with_every_setting_that_has_an_entry_a_layer_or_is_known_to_be_whole(
    tmp_path: Path, kind: str
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    settings = AutoConfig.for_model(kind, vocab_size=64, num_hidden_layers=4, head_dim=8, num_labels=1, **sizes)
    settings.pad_token_id = 0
    heads.add_score_head(settings)
    model = AutoModelForSequenceClassification.from_config(settings).eval()
    tokens = torch.arange(1, 9)[None]
    whole = model.base_model(tokens, output_hidden_states=True).hidden_states
    assert heads.can_be_cut(model, 2)
    heads.cut_trunk(model, 2)
    model.save_pretrained(tmp_path)
    again: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert len(again.base_model.layers) == 2 and again.config.num_labels == 1
    expected = model.base_model.norm(whole[2])
    torch.testing.assert_close(again.base_model(tokens).last_hidden_state, expected, atol=1e-5, rtol=1e-4)


def dialogue(number: int, turns: int) -> list[Message]:
    more = [Message(role=("assistant", "user")[i % 2], content=f"Turn {i}.") for i in range(2 * turns)]
    return [Message(role="user", content=f"Question {number}?"), *more]


def pair_of(prompt: list[Message]) -> Any:
    sides = {side: [Message(role="assistant", content=side)] for side in ("chosen", "rejected")}
    names = {"label_id": "0", "source": "import", "annotator": "ann", "created_utc": "2026-01-01T00:00:00+00:00"}
    pair = Preference(prompt=prompt, prompt_id=prompt_id(prompt), split="train", **sides, **names)
    return pair, EncodedPair([1], [2], [3])


@pytest.mark.parametrize("seed", range(5))
def test_a_dialogue_decides_or_is_trained_on_and_never_both_whatever_turn_was_labelled(seed: int) -> None:
    prompts = [dialogue(number, turns) for number in range(40) for turns in range(1 + number % 3)]
    pairs = TrainingPairs([pair_of(prompt) for prompt in prompts], [pair_of(prompt) for prompt in prompts[::2]], {})
    kept = kept_openings([opening_id(prompt) for prompt in prompts], seed)
    rest = pairs.without(kept)
    assert len(kept) == 8
    assert all(opening_id(pair.prompt) not in kept for pair, _ in [*rest.strict, *rest.ties])
    assert {opening_id(pair.prompt) for pair, _ in rest.strict} | kept == {opening_id(prompt) for prompt in prompts}
    assert kept_openings(["one"] * 50, seed) == set() and kept_openings(list("abcdefghi"), seed) == set()
    assert LEAST_OPENINGS == 10


def test_a_scale_of_the_scores_decides_nothing_and_an_order_does() -> None:
    margins = np.random.default_rng(0).normal(0.5, 1, 200)
    openings = [str(i // 2) for i in range(200)]
    loss = loss_at_best_temperature(margins, openings)
    assert loss_at_best_temperature(20 * margins, openings) == pytest.approx(loss, abs=1e-6)
    assert loss < 0.65 < loss_at_best_temperature(np.random.default_rng(1).normal(0, 1, 200), openings) + 0.05
    many = loss_at_best_temperature(np.array([1.0] * 99 + [-1.0]), ["often"] * 99 + ["once"])
    assert many == pytest.approx(np.log(2), abs=1e-3), "each dialogue weighs the same"


def turned(row: EncodedPair) -> EncodedPair:
    return EncodedPair(row.prompt_ids, row.rejected_ids, row.chosen_ids)


def test_an_annotator_whose_labels_count_for_little_has_as_little_say_in_the_choice(
    bases: Callable[[str], Path],
) -> None:
    model = loading.new_reward_model(bases("plain"), ModelConfig(device="cpu"))
    with torch.no_grad():
        model.model.score.weight.normal_(std=1.0)
    pairs = [(pair_of(dialogue(number, 0))[0], row) for number, row in enumerate(rows())]
    scores = np.array(score_readings(model, Kept.of(pairs, {}).readings)).reshape(-1, 2)
    # The model agrees with `ann` on three pairs of four.
    pairs = [
        (pair, row if (first > second) == bool(i % 4) else turned(row))
        for i, ((pair, row), (first, second)) in enumerate(zip(pairs, scores, strict=True))
    ]
    spam = [(pair.model_copy(update={"annotator": "spam"}), turned(row)) for pair, row in pairs]
    alone = Kept.of(pairs, {}).loss(model)
    by_weight = [Kept.of(pairs + spam, {"ann": 1.0, "spam": weight}).loss(model) for weight in (0.0, 0.1, 0.5, 1.0)]
    assert by_weight[0] == pytest.approx(alone, abs=1e-6) and alone < by_weight[1] < by_weight[2] < by_weight[3]
    assert by_weight[3] == pytest.approx(np.log(2), abs=1e-2), "each takes back what the other says"
    assert Kept.of(spam, {"spam": 0.0}).loss(model) == Kept.of(spam, {}).loss(model), "where nobody else labelled"


@pytest.mark.parametrize("pooling", ["last token", "mean over the answer"])
def test_the_trainer_reads_an_answers_tokens_alone_and_no_padding(
    bases: Callable[[str], Path], campaign: Callable[..., Any], tmp_path: Path, pooling: str
) -> None:
    config = campaign(tmp_path).stages["reward"]
    model = loading.new_reward_model(bases("plain"), config.model)
    with torch.no_grad():
        model.model.score.weight.normal_(std=1.0)
    if pooling != "last token":
        setattr(model.model.config, heads.POOLING, pooling)
    pairs = [(pair_of(dialogue(i, 0))[0].model_copy(update={"label_id": str(i)}), row) for i, row in enumerate(rows(4))]
    labels = label_rows(config, pairs, [])
    trainer = build_trainer(config, runs.StageRun(config, tmp_path, False, []), model, labels)
    trainer.model.eval()

    def loss(multiple: int | None = None, changed: str = "") -> float:
        """The loss of all rows, padded to a multiple, with other hidden states of some tokens."""
        collator = Collator(model.tokenizer.pad_token_id, multiple)
        batch = collator([label.columns for label in labels])
        answers = batch["answer_mask"].bool()
        places = {"": answers & ~answers, "all but answers": ~answers, "answers": answers}[changed]

        def change(_: Any, __: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state + 5.0 * places[..., None]
            return output

        hook = under_adapter(trainer.model).base_model.register_forward_hook(change)
        try:
            with torch.no_grad():
                return float(trainer.compute_loss(trainer.model, batch))
        finally:
            hook.remove()

    plain = loss()
    assert loss(multiple=32) == pytest.approx(plain, abs=1e-5)
    assert loss(changed="all but answers") == pytest.approx(plain, abs=1e-6)
    assert loss(changed="answers") != pytest.approx(plain, abs=1e-3)


LABELS = [{"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk."} for i in range(30)]

DOUBTED = [
    row if i % 5 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for i, row in enumerate(LABELS)
]
"""One in five is the other way round."""


@pytest.fixture
def run(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    def make(
        labels: list[dict[str, str]], folder: Path = tmp_path, split: dict[str, float] | None = None, **keys: Any
    ) -> tuple[Any, Path, RewardReport]:
        jsonl(folder / "labels.jsonl", labels)
        label = {"source": "import", "path": "labels.jsonl"}
        parts = {"split": split} if split else {}
        made = campaign(folder, label=label, reward={"start": "probe", "max_steps": 8, **keys}, **parts)
        if runs.find_stage(made.run_dir, "sft") is None:
            stage = runs.begin(made.stages["sft"])
            loading.save(loading.load_base(made.config.model), stage.dir / "model")
            stage.finish()
            ui.label.run.run(made.stages["label"])
        directory = reward.train.run(made.stages["reward"])
        return made, directory, runs.open_stage(made.run_dir, "reward").report(RewardReport)

    return make


@pytest.mark.parametrize(
    ("rate", "labels", "keys"),
    [(1e-2, LABELS, {}), (30.0, DOUBTED, {}), (1.0, DOUBTED, {"full_finetuning": True})],
    ids=["kept", "undone", "undone, every weight"],
)
def test_training_that_makes_a_probe_worse_is_undone_and_whatever_is_kept_scores_alike_after_loading(
    run: Callable[..., Any], rate: float, labels: list[dict[str, str]], keys: dict[str, Any]
) -> None:
    made, directory, report = run(labels, learning_rate=rate, **keys)
    choice, learnt = report.start, report.learnt
    assert choice and learnt and choice.loss_at_start is not None and choice.loss_trained is not None
    trained = report.pairs.train
    assert choice.kept_prompts == len(range(0, trained, 5)), "a fifth, rounded up"
    findings = [finding.code for finding in runs.open_stage(made.run_dir, "reward").manifest.verdict.findings]
    if choice.step:
        assert choice.loss_trained < choice.loss_at_start and learnt.labels == trained - choice.kept_prompts
    else:
        assert choice.loss_trained >= choice.loss_at_start and learnt.labels == trained
        assert report.probe and report.accuracy and report.probe.value == report.accuracy.value
    assert ("training_undone" in findings) == (choice.step == 0) == (labels is DOUBTED)
    assert not list(directory.rglob("*.partial")) and verify(made.run_dir).problems == []
    loaded = loading.load_reward_model(directory / "model", made.config.model)
    pairs = read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)
    heldout = [pair for pair in pairs if is_heldout(pair.prompt, made.config.split)]
    tokens = [encode_completion(loaded.tokenizer, pair.chosen[0].content) for pair in heldout]
    written = [PairScore.model_validate_json(line) for line in (directory / "scores.jsonl").read_text().splitlines()]
    again = score(loaded, [pair.prompt for pair in heldout], tokens)
    assert again == pytest.approx([pair.chosen for pair in written], abs=1e-4)
    on_record = set(json.loads((directory / runs.TRAINED).read_text()))
    assert on_record == {opening_id(pair.prompt) for pair in pairs} - {opening_id(pair.prompt) for pair in heldout}


def test_an_interrupted_training_remembers_what_was_measured_and_ends_as_one_that_was_not(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            raise Killed

    keys = {"learning_rate": 1e-2, "save_steps": 3, "max_steps": 12}
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    _, whole, _ = run(DOUBTED, tmp_path / "whole", **keys)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(KeepBest, "on_step_begin", killed)
        run(DOUBTED, tmp_path / "killed", **keys)
    _, resumed, _ = run(DOUBTED, tmp_path / "killed", **keys)
    losses = [
        {row["step"]: row["kept_loss"] for row in read_metrics(folder / "metrics.jsonl") if "kept_loss" in row}
        for folder in (whole, resumed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and set(losses[0]) >= {0, 3, 6}
    starts = [json.loads((folder / "report.json").read_text())["start"] for folder in (whole, resumed)]
    assert starts[0]["step"] == starts[1]["step"]
    assert starts[0]["loss_trained"] == pytest.approx(starts[1]["loss_trained"], rel=1e-3)


@pytest.mark.parametrize("behind", ["the first model", "the second model"])
def test_a_stage_that_was_killed_behind_its_training_is_resumed(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    class Killed(BaseException):
        pass

    cards = iter(range(2))

    def killed(*arguments: Any) -> Any:
        if next(cards) == ["the first model", "the second model"].index(behind):
            raise Killed
        return evaluate.report_card(*arguments)

    keys: dict[str, Any] = {"learning_rate": 1e-2, "save_steps": 4, "max_steps": 8}
    if behind == "the second model":
        keys["split"] = {"heldout_fraction": 0.1, "judge_fraction": 0.7}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reward.train, "report_card", killed)
        run(LABELS, **keys)
    made, directory, report = run(LABELS, **keys)
    resumed = report.start if behind == "the first model" else report.judge and report.judge.start
    assert resumed and resumed.kept_prompts and not list(directory.rglob("*.partial"))
    assert verify(made.run_dir).problems == []


def test_a_file_of_weights_that_was_torn_is_none(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(weights: Any, file: Path, *_: Any) -> None:
        file.write_bytes(b"torn")
        raise Killed

    keys = {"learning_rate": 1e-2, "save_steps": 1, "max_steps": 8}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reward.start, "save_file", killed)
        run(LABELS, **keys)
    made, _, report = run(LABELS, **keys)
    assert report.start and verify(made.run_dir).problems == []


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "falcon"])
def test_a_family_that_keeps_its_layers_elsewhere_starts_at_its_whole_depth(kind: str) -> None:
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"opt": {"ffn_dim": 32, "word_embed_proj_dim": 16}}.get(kind, {})
    settings = AutoConfig.for_model(kind, **sizes, **more, num_labels=1)
    model: Any = AutoModelForSequenceClassification.from_config(settings)
    layers = dict(model.named_parameters()).keys()
    heads.cut_trunk(model, 2)
    assert dict(model.named_parameters()).keys() == layers


def test_what_is_exported_scores_alike_by_the_lines_of_its_card(run: Callable[..., Any], tmp_path: Path) -> None:
    made, directory, _ = run(LABELS, learning_rate=30.0)
    settings = json.loads((directory / "model" / "config.json").read_text())
    settings[heads.POOLING] = "mean over the answer"  # whichever place was the best here
    (directory / "model" / "config.json").write_text(json.dumps(settings))
    loaded = loading.load_reward_model(directory / "model", made.config.model)
    prompt = [Message(role="user", content="Say red.")]
    answer = [encode_completion(loaded.tokenizer, "It is red.")]
    code = "\n".join(_scoring(runs.open_stage(made.run_dir, "reward"))).partition("```python\n")[2].partition("```")[0]
    make_portable(directory / "model", reward_model=True)
    names: dict[str, Any] = {}
    exec(code.replace("DIR", repr(str(directory / "model"))), names)
    assert names["score"] == pytest.approx(score(loaded, [prompt], answer)[0], abs=1e-5)


def test_with_too_few_prompts_to_decide_nothing_is_trained_and_that_is_said(run: Callable[..., Any]) -> None:
    made, _, report = run(LABELS[:8])
    assert report.start and (report.start.step, report.start.kept_prompts) == (0, 0)
    (said,) = [
        finding.message
        for finding in runs.open_stage(made.run_dir, "reward").manifest.verdict.findings
        if finding.code == "training_undone"
    ]
    assert "nothing was trained" in said


def test_a_head_of_ones_own_and_weights_in_parts_are_refused_beside_a_probe(
    campaign: Callable[..., Any], jsonl: Callable[..., Path], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    another_base.reward_model(tmp_path / "base", bases("llama"))
    jsonl(tmp_path / "labels.jsonl", LABELS)
    label = {"source": "import", "path": "labels.jsonl"}
    made = campaign(tmp_path, label=label, reward={"start": "probe", "base": {"name": "./base"}})
    ui.label.run.run(made.stages["label"])
    problems: list[str] = []
    check_rows(made.stages["reward"], made.stages, Rows([]), problems, [])
    assert [problem for problem in problems if "head of its own" in problem], "trueup check says so before"
    with pytest.raises(ConfigError, match="has a head of its own"):
        reward.train.run(made.stages["reward"])
    with pytest.raises(ConfigError, match=r"reward.start: probe.*trainer_args.fsdp"):
        campaign(tmp_path, reward={"start": "probe", "trainer_args": {"fsdp": "full_shard"}})
