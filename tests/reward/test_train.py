"""The real reward stage on a tiny policy: it learns the pairs, and the saved model scores as the trained one did."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaAttention

import reward.train
import ui.label.run
from reward.comparisons import Contrast, LabelRow
from reward.config import RewardConfig
from reward.trainer import build_trainer
from trueup import runs
from trueup.artifacts.manifest import Manifest
from trueup.artifacts.reports import RewardCards
from trueup.config import SplitConfig
from trueup.data.records import (
    Candidate,
    CandidateSet,
    Message,
    Preference,
    prompt_id,
    read_rows,
    write_rows,
)
from trueup.data.split import is_for_judge, is_heldout
from trueup.exporting.export import export
from trueup.models import loading
from trueup.models.chat import encode_completion, encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.scoring import score
from trueup.models.sources.settings import context_length
from trueup.models.templates.ends import as_trained
from trueup.training import loop
from trueup.training.merging import merged
from trueup.training.pairs import read_pairs
from trueup.verify import verify


def until_labels(made: Any) -> None:
    """The base model stands for the SFT policy."""
    stage = runs.begin(made.stages["sft"])
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    ui.label.run.run(made.stages["label"])


@pytest.fixture
def trained(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> tuple[Any, Path]:
    rows = [
        {"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk is cold."}
        for i in range(24)
    ]
    jsonl(tmp_path / "labels.jsonl", rows)
    made = campaign(
        tmp_path, label={"source": "import", "path": "labels.jsonl"}, reward={"max_steps": 16, "score_candidates": True}
    )
    until_labels(made)
    prompt = [Message(role="user", content="Tea or milk?")]
    texts = ("Tea is warm.", "Milk is cold.")
    candidates = [
        Candidate(text=text, token_ids=[*tokenizer.encode(text), tokenizer.eos_token_id], finished=True)
        for tokenizer in [loading.load_base(made.config.model).tokenizer]
        for text in texts
    ]
    sampled = runs.begin(made.stages["sample"])
    row = {"prompt_id": prompt_id(prompt), "prompt": prompt, "split": "train", "candidates": candidates, "sampler": {}}
    write_rows(sampled.dir / "candidates.jsonl", [CandidateSet(**row)])
    sampled.finish()
    return made, reward.train.run(made.stages["reward"])


def test_a_sampled_answer_that_the_reward_model_cannot_read_has_no_score_beside_those_that_have(
    trained: tuple[Any, Path],
) -> None:
    made, directory = trained
    model = loading.load_reward_model(directory / "model", made.config.model)
    limit = context_length(model.model.config)
    assert limit is not None
    texts = ("Tea is warm.", "tea " * limit)
    row = CandidateSet(
        prompt_id="0",
        prompt=[Message(role="user", content="Tea or milk?")],
        split="train",
        candidates=[Candidate(text=text, token_ids=[], finished=True) for text in texts],
        sampler={},
    )
    stage = runs.begin(made.stages["reward"])
    (scored,) = reward.train.score_candidates(model, [row], stage)
    assert scored.scores[0] is not None and scored.scores[1] is None
    (finding,) = stage.findings
    assert finding.code == "answers_without_score" and finding.message.startswith("1 of 2 sampled answers")


def test_it_learns_scores_alike_after_loading_and_reports_what_scripts_rely_on(trained: tuple[Any, Path]) -> None:
    made, directory = trained
    report = json.loads((directory / "report.json").read_text())
    assert report["accuracy"]["value"] == 1.0 and report["pairs"]["heldout"] == report["accuracy"]["n"] > 0
    assert {
        "accuracy",
        "length_baseline",
        "calibration",
        "reward_length_spearman",
        "by_category",
        "by_annotator",
        "normalisation",
    } <= set(report)
    assert report["probe"]["value"] == 1.0 and report["probe"]["reason"].startswith("layer ")
    losses = [json.loads(line).get("loss") for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(math.log(2), abs=0.02), "scores start near 0"

    # A head that is lost on saving is the classic failure of adapters: score again from the disk.
    pairs = read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)
    heldout = [pair for pair in pairs if is_heldout(pair.prompt, made.config.split)]
    loaded = loading.load_reward_model(directory / "model", made.config.model)
    loaded.model.eval()
    tokens = [encode_completion(loaded.tokenizer, pair.chosen[0].content) for pair in heldout]
    written = [json.loads(line)["chosen"] for line in (directory / "scores.jsonl").read_text().splitlines()]
    assert score(loaded, [pair.prompt for pair in heldout], tokens) == pytest.approx(written, abs=1e-4)
    assert verify(made.run_dir).problems == []

    assert not (directory / "judge").exists(), "a second reward model only where prompts are kept for it"
    (scored,) = (json.loads(line) for line in (directory / "candidate_scores.jsonl").read_text().splitlines())
    tea, milk = scored["scores"]
    assert scored["prompt_id"] and tea > milk

    # Exported, it scores alike in plain transformers, in which nothing of ours is left: one by one, and in a batch.
    export(made.run_dir, "reward", made.run_dir.parent / "exported")
    exported = made.run_dir.parent / "exported"
    plain = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    conversations = [[vars(message) for message in (*pair.prompt, *pair.chosen)] for pair in heldout]
    conversations = [[{k: turn[k] for k in ("role", "content")} for turn in turns] for turns in conversations]
    with torch.inference_mode():
        for conversation, expected in zip(conversations, written, strict=True):
            ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
            assert plain(**ids).logits.item() == pytest.approx(expected, abs=1e-4)
        batch = tokenizer.apply_chat_template(conversations, return_tensors="pt", return_dict=True, padding=True)
        assert plain(**batch).logits.squeeze(-1).tolist() == pytest.approx(written, abs=1e-4)
    told = json.loads((exported / "config.json").read_text())["trueup_reward"]
    assert told["heldout_accuracy"]["value"] == report["accuracy"]["value"]
    assert {key: told[key] for key in ("mean", "std")} == report["normalisation"]
    assert told["temperature"] == report["calibration"]["temperature"]
    card = (exported / "README.md").read_text()
    assert f"mean {told['mean']:.4f}, standard deviation {told['std']:.4f}" in card
    assert "Held-out accuracy: 100.0 %" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("DIR", repr(str(exported)))
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names["score"], float)


def test_layers_below_the_adapter_read_a_row_once_in_three_epochs_and_the_losses_stay(
    campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {0: 0, 1: 0}
    attend = LlamaAttention.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        read[self.layer_idx] += self.training
        return attend(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", counted)

    def losses(folder: Path) -> list[float]:
        folder.mkdir()
        rows = [
            {"prompt": f"Question {i}:{' tea' * (i % 5)}?", "chosen": "Tea is warm.", "rejected": "Milk"}
            for i in range(24)
        ]
        jsonl(folder / "labels.jsonl", rows)
        keys = {"num_train_epochs": 3, "max_steps": -1, "lora": {"r": 4, "last_layers": 1}}
        made = campaign(folder, label={"source": "import", "path": "labels.jsonl"}, reward=keys)
        until_labels(made)
        steps = (reward.train.run(made.stages["reward"]) / "metrics.jsonl").read_text().splitlines()
        return [row["loss"] for row in map(json.loads, steps) if "loss" in row]

    kept = losses(tmp_path / "kept")
    assert read[0] * 3 == read[1] == len(kept)
    monkeypatch.setattr(loop, "free_memory", lambda device: 0)
    assert losses(tmp_path / "anew") == pytest.approx(kept, abs=1e-6)
    assert read[1] - read[0] == 2 * len(kept) / 3, "with no memory for it, every layer reads"
    assert kept[-1] < kept[0] - 0.01


def test_a_second_reward_model_learns_from_other_prompts_and_neither_from_held_out_ones(
    campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk."} for i in range(24)]
    jsonl(tmp_path / "labels.jsonl", rows)
    made = campaign(
        tmp_path,
        label={"source": "import", "path": "labels.jsonl"},
        reward={"max_steps": 8},
        split={"heldout_fraction": 0.3, "judge_fraction": 0.3},
    )
    until_labels(made)
    directory = reward.train.run(made.stages["reward"])

    first, second = (
        set(json.loads((folder / runs.TRAINED).read_text())) for folder in (directory, directory / "judge")
    )
    pairs = read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)
    heldout = {pair.prompt_id for pair in pairs if is_heldout(pair.prompt, made.config.split)}
    assert first and second and heldout
    assert first | second | heldout == {pair.prompt_id for pair in pairs}
    assert first.isdisjoint(second) and heldout.isdisjoint(first | second)
    report = json.loads((directory / "report.json").read_text())
    assert report["judge"]["pairs"]["train"] == len(second) and report["judge"]["accuracy"]["value"] == 1.0
    findings = runs.open_stage(made.run_dir, "reward").manifest.verdict.findings
    told = [found.message for found in findings if found.code == "not_told_from_a_rule"]
    assert [message.startswith("the second reward model: accuracy") for message in told] == [False, True]
    assert [finding["message"] for part in (report, report["judge"]) for finding in part["findings"]] == told
    assert loading.load_reward_model(directory / "judge" / "model", made.config.model)
    assert not list((directory / "judge").glob("checkpoint*")) and verify(made.run_dir).problems == []


def test_a_second_reward_model_that_failed_is_a_warning_and_the_first_one_still_pays(
    campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Its prompts alone are labelled the wrong way round."""
    split = SplitConfig(heldout_fraction=0.4, judge_fraction=0.3)
    rows = [{"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk."} for i in range(40)]
    for row in rows:
        if is_for_judge([Message(role="user", content=row["prompt"])], split):
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    jsonl(tmp_path / "labels.jsonl", rows)
    label = {"source": "import", "path": "labels.jsonl"}
    made = campaign(tmp_path, label=label, reward={"max_steps": 8}, split=split.model_dump())
    until_labels(made)
    reward.train.run(made.stages["reward"])
    finished = runs.open_stage(made.run_dir, "reward")
    cards = finished.report(RewardCards)
    assert cards.judge and cards.judge.failed and not cards.failed
    assert finished.failure() is None, "what pays is sound"
    (told,) = [one for one in finished.manifest.verdict.findings if one.code == "second_reward_model_failed"]
    assert told.level == "warn" and told.message.startswith("the second reward model: accuracy ")


def test_a_second_reward_model_whose_merge_went_wrong_judges_nothing_and_says_so(
    campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merged_wrongly(model: Any, stage: Any, sequences: Any) -> Any:
        if stage.dir.name == "judge":
            stage.find("fail", "merge_differs", "the merged weights answer otherwise")
        return merged(model, stage, sequences)

    monkeypatch.setattr(reward.train, "merged", merged_wrongly)
    rows = [{"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk."} for i in range(40)]
    jsonl(tmp_path / "labels.jsonl", rows)
    label = {"source": "import", "path": "labels.jsonl"}
    split = {"heldout_fraction": 0.3, "judge_fraction": 0.3}
    made = campaign(tmp_path, label=label, reward={"max_steps": 2}, split=split)
    until_labels(made)
    reward.train.run(made.stages["reward"])
    finished = runs.open_stage(made.run_dir, "reward")
    cards = finished.report(RewardCards)
    assert cards.judge and cards.judge.failed and not cards.failed
    assert "the merged weights answer otherwise" in str(finished.manifest.verdict.findings)


@pytest.mark.parametrize("rule", ["all", "extremes", "nested"])
def test_the_exam_is_all_held_out_pairs_whatever_is_trained_on(jsonl: Any, tmp_path: Path, rule: Any) -> None:
    split, rows = SplitConfig(heldout_fraction=0.5), []
    for i in range(12):
        prompt = [Message(role="user", content=f"Question {i}?")]
        for better, worse in itertools.combinations(range(4), 2):
            row: dict[str, Any] = {
                "prompt": prompt,
                "chosen": [Message(role="assistant", content=str(better))],
                "label_id": str(i),
            }
            row |= {"rejected": [Message(role="assistant", content=str(worse))], "prompt_id": prompt_id(prompt)}
            row |= {"chosen_rank": better, "rejected_rank": worse, "split": "train", "source": "human"}
            rows.append(Preference(**row, annotator="ann", created_utc="2026-01-01T00:00:00+00:00"))
    tied = [row.model_copy(update={"num_tiers": tiers}) for row in rows for tiers in (1, 3)]
    write_rows(tmp_path / "preferences.jsonl", rows)
    write_rows(tmp_path / "ties.jsonl", tied)
    manifest: dict[str, Any] = {"identity": {}}
    labels = runs.FinishedStage("label", tmp_path, Manifest.model_construct(**manifest))
    config = RewardConfig(run_dir=tmp_path, model=ModelConfig(), split=split, pairs=rule)
    pairs = read_pairs(labels, config)
    heldout = [row for row in rows if is_heldout(row.prompt, split)]
    assert pairs.heldout == heldout and len(heldout) % 6 == 0 < len(heldout)
    labels_to_train = (len(rows) - len(heldout)) / 6
    assert len(pairs.train) == {"all": 6, "extremes": 1, "nested": 2}[rule] * labels_to_train
    assert len(pairs.ties) == (12 if rule == "all" else 1) * labels_to_train, "one of a ranking that is one tie"
    assert len(pairs.ties) + pairs.ties_passed_over == 12 * labels_to_train, "those that are passed over are counted"


# ---- Padding and ends are positions ------------------------------------------------------------------------------


def gpt2(folder: Path, base: Path) -> Path:
    """Absolute positions, and one token for beginning, end and whatever is unknown."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.2}
    end = tokenizer.eos_token_id
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def with_pad(folder: Path, base: Path) -> Path:
    """A pad token of its own from the start."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    return folder


BASES: dict[str, tuple[str, Callable[..., Path] | None, dict[str, Any]]] = {
    "pad is EOS, which is all there is": ("plain", None, {"chat_template": "plain"}),
    "EOS is BOS and pad": ("plain", gpt2, {"chat_template": "plain"}),
    "pad is what is unknown": ("llama", None, {"chat_template": "plain"}),
    "pad was EOS and is another control token": ("chatml", None, {"chat_template": "own"}),
    "tokens were added": ("plain", None, {"chat_template": "chatml", "new_tokens": True}),
    "pad is a token of its own, on the left": ("plain", with_pad, {"chat_template": "plain"}),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("full_finetuning", [False, True], ids=["adapter", "whole"])
def test_a_score_is_the_same_as_trained_as_scored_and_as_saved(
    bases: Callable[[str], Path], campaign: Callable[..., Any], tmp_path: Path, name: str, full_finetuning: bool
) -> None:
    kind, build, keys = BASES[name]
    torch.manual_seed(0)
    base = build(tmp_path / "base", bases(kind)) if build else bases(kind)
    made = campaign(tmp_path, model={"name": str(base), **keys}, reward={"full_finetuning": full_finetuning})
    config = made.stages["reward"]
    policy = loading.load_base(config.model)
    loading.save(policy, tmp_path / "policy")
    model = loading.new_reward_model(tmp_path / "policy", config.model)
    with torch.no_grad():
        model.model.score.weight.normal_(std=1.0)

    # Finished answers, and answers that were cut: after a word, and after every token that can be taken for an end.
    prompts = [[Message(role="user", content=text)] for text in ("Say red.", "Tell me about all the grey things.")]
    control = sorted({policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id, *policy.tokenizer.all_special_ids})
    finished = [encode_completion(model.tokenizer, text) for text in ("It is red.", "No", "It is blue, he")]
    completions = [*finished, *(ids[:-1] for ids in finished), *([*finished[0][:-1], token] for token in control)]
    completions += [[*finished[1][:-1], token, token] for token in control]
    # Whichever token ended an answer, the reward model reads the end that it was trained on.
    read = [as_trained(model.tokenizer, ids) for ids in completions]
    asked_ids = [encode_prompt(model.tokenizer, prompts[i % 2]) for i in range(len(read))]
    texts = [prompt + ids for prompt, ids in zip(asked_ids, read, strict=True)]
    rows = [LabelRow([text, asked_ids[i] + read[i - 1]], [Contrast((0,), (1,))]) for i, text in enumerate(texts)]
    stage = runs.StageRun(config, tmp_path, False, [])
    trainer = build_trainer(config, stage, model, rows)
    trainer.model.eval()
    with torch.inference_mode():
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        in_training = trainer.model(**inputs).logits.squeeze(-1).tolist()[::2]

    asked = [prompts[i % 2] for i in range(len(rows))]
    as_scored = score(model, asked, completions, batch_size=3)
    assert as_scored == pytest.approx(in_training, abs=1e-4)
    distinct = set(map(tuple, texts))
    assert len({round(value, 4) for value in as_scored}) >= len(distinct), (
        "the last token of an answer changes its score"
    )

    model.model = merged(trainer.model, stage, texts)
    loading.save(model, tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    padded = tokenizer.pad({"input_ids": texts}, return_tensors="pt")
    with torch.inference_mode():
        as_saved = plain(**padded).logits.squeeze(-1).tolist()
    assert as_saved == pytest.approx(in_training, abs=1e-4)
