"""The real reward stage on a base that shares nothing with the policy, and what cannot be such a base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import another_base
import pytest
from another_base import Plain
from transformers import BertConfig, BertForSequenceClassification

import reward.check
import reward.train
import ui.label.run
from reward.config import RewardConfig
from trueup import runs
from trueup.check import check
from trueup.checking.rows import Rows
from trueup.data.records import Preference, read_rows
from trueup.data.split import is_heldout
from trueup.errors import ConfigError, ModelError
from trueup.exporting.export import export
from trueup.models import loading
from trueup.models.config import ModelStageConfig
from trueup.models.policies import reward_model_config
from trueup.verify import verify

UNTRAINED: dict[str, Any] = {"learning_rate": 0, "max_steps": None, "train_batch_size": None, "lora": None}
"""A learning rate of 0, and no key beside it that only training reads."""
TRAINING: dict[str, Any] = {
    "annotator_weights": "reliability",
    "center_rewards_coefficient": 0.1,
    "criteria_weights": {"helpful": 1.0},
    "ensemble": 3,
    "full_finetuning": True,
    "grade_margins": [0, 1, 2],
    "ideal_answers": False,
    "label_smoothing": 0.1,
    "lora": {"r": 2},
    "lr_scheduler_type": "linear",
    "max_grad_norm": 0.5,
    "max_steps": 4,
    "num_train_epochs": 3,
    "pairs": "nested",
    "per_device_train_batch_size": 2,
    "report_to": ["trackio"],
    "save_steps": 9,
    "start": "probe",
    "ties": "half",
    "train_batch_size": 4,
    "trainer_args": {"optim": "adafactor"},
    "warmup_steps": 2,
}
BASES = {"a language model": another_base.language_model, "a reward model of one's own": another_base.reward_model}


@pytest.fixture
def labelled(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """A campaign whose labels are there, with these keys of the reward stage."""

    def make(policy: str | None = None, **keys: Any) -> Any:
        rows = [
            {"prompt": f"Question {i}: tea or milk?", "chosen": "Tea is warm.", "rejected": "Milk is cold."}
            for i in range(24)
        ]
        jsonl(tmp_path / "labels.jsonl", rows)
        model = {"model": {"name": policy}} if policy else {}
        made = campaign(tmp_path, label={"source": "import", "path": "labels.jsonl"}, reward=keys, **model)
        ui.label.run.run(made.stages["label"])
        return made

    return make


def heldout(made: Any) -> list[Preference]:
    pairs = read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)
    return [pair for pair in pairs if is_heldout(pair.prompt, made.config.split)]


def scores(made: Any) -> list[tuple[float, float]]:
    path = runs.stage_dir(made.run_dir, "reward") / "scores.jsonl"
    return [(row["chosen"], row["rejected"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize("kind", BASES)
def test_it_learns_on_any_base_without_a_policy_and_scores_the_text_in_that_bases_own_tokens(
    labelled: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    BASES[kind](tmp_path / "base", bases("llama"))
    made = labelled("owner/policy", base={"name": "./base"}, max_steps=16)
    directory = reward.train.run(made.stages["reward"])
    assert json.loads((directory / "report.json").read_text())["accuracy"]["value"] == 1.0
    plain = Plain(directory / "model")
    direct = [
        tuple(plain.score(pair.prompt, side[0].content, True) for side in (pair.chosen, pair.rejected))
        for pair in heldout(made)
    ]
    assert len(direct) > 3 and scores(made) == [pytest.approx(row, abs=1e-4) for row in direct]  # before the merge
    trained = loading.load_reward_model(directory / "model", reward_model_config(made.run_dir, made.config.model))
    assert trained.tokenizer.chat_template == another_base.TEMPLATE and trained.model.config.num_labels == 1
    manifest = runs.open_stage(made.run_dir, "reward").manifest
    assert manifest.parent_sha256("sft") is None
    assert manifest.chat_template and manifest.chat_template.startswith("chat template own (the tokenizer brings it)")
    assert verify(made.run_dir).problems == []

    export(made.run_dir, "reward", tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "- Base model: <local>. " in card and "owner/policy" not in card


def test_with_a_learning_rate_of_0_a_reward_model_of_ones_own_is_measured_and_used_as_it_is(
    labelled: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = another_base.reward_model(tmp_path / "base", bases("llama"))
    made = labelled(base={"name": "./base"}, **UNTRAINED)
    directory = reward.train.run(made.stages["reward"])
    own = Plain(base)
    direct = [
        tuple(own.score(pair.prompt, side[0].content, True) for side in (pair.chosen, pair.rejected))
        for pair in heldout(made)
    ]
    assert scores(made) == [pytest.approx(row, abs=1e-5) for row in direct]
    saved = Plain(directory / "model")
    assert [saved.score(pair.prompt, pair.chosen[0].content, True) for pair in heldout(made)] == pytest.approx(
        [chosen for chosen, _ in direct], abs=1e-5
    )
    assert json.loads((directory / runs.TRAINED).read_text()) == [], "it was trained on no prompt"
    assert verify(made.run_dir).problems == []


def test_other_files_of_the_base_make_the_stage_stale_and_another_policy_does_not(
    labelled: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    from trueup.campaign import why_stale

    base = another_base.reward_model(tmp_path / "base", bases("llama"))
    made = labelled(base={"name": "./base"}, **UNTRAINED)
    reward.train.run(made.stages["reward"])
    assert why_stale(made.stages["reward"]) is None and made.stages["reward"].parents() == ("label",)
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert why_stale(made.stages["reward"]) == "base.name: config.json has changed"


# ---- What cannot be one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "split", "problem"),
    [
        ({"base": {"new_tokens": True}}, {}, "reward.base.new_tokens: the embeddings of new tokens are not trained"),
        ({"base": {"adapter": "x"}}, {}, "reward.base.adapter: is an adapter of a language model: merge it"),
        ({"base": {"load_in_4bit": True}}, {}, "reward.base.load_in_4bit: a reward model is trained on whole weights"),
        ({"base": {"names": "x"}}, {}, "reward.base.names: unknown key; did you mean name?"),
        (
            {"base": {}, "trainer_args": {"bf16": True}},
            {},
            "trainer_args.bf16: is set by Trueup; use reward.base.dtype",
        ),
        ({"learning_rate": 0}, {}, "reward.learning_rate: 0 trains nothing, and the SFT policy has no scores"),
        (
            UNTRAINED | {"base": {}},
            {"judge_fraction": 0.3},
            "reward.learning_rate: 0 trains nothing, and split",
        ),
        ({"model": {"name": "x"}}, {}, "where all stages share it; a base of this stage's own is reward.base"),
    ],
)
def test_a_base_that_the_config_cannot_mean_is_refused_with_its_key(
    campaign: Callable[..., Any], tmp_path: Path, keys: Any, split: Any, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        campaign(tmp_path, reward=keys, split=split)
    assert problem in str(caught.value)


def test_a_key_that_only_training_reads_is_refused_where_nothing_is_trained(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    label = {"source": "import", "path": "prompts.jsonl"}
    campaign(tmp_path, label=label, reward=UNTRAINED | {"base": {}})
    for key, value in TRAINING.items():
        with pytest.raises(ConfigError) as caught:
            keys = {name: one for name, one in UNTRAINED.items() if (key, name) != ("full_finetuning", "lora")}
            campaign(tmp_path, label=label, reward=keys | {"base": {}, key: value})
        assert f"reward.{key}: only training reads it, and learning_rate: 0 trains nothing" in str(caught.value)
    read_anyway = {"base", "learning_rate", "max_length", "score_candidates"}
    assert RewardConfig.model_fields.keys() == TRAINING.keys() | read_anyway | ModelStageConfig.model_fields.keys()


def two_outputs(folder: Path, source: Path) -> None:
    another_base.reward_model(folder, source, num_labels=2)


def encoder(folder: Path, source: Path) -> None:
    tokenizer = another_base.tokenizer_of(source, folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)).save_pretrained(folder)


def broken_template(folder: Path, source: Path) -> None:
    another_base.language_model(folder, source)
    (folder / "chat_template.jinja").write_text("{% if %}")


def gguf(folder: Path, source: Path) -> None:
    folder.with_suffix(".gguf").write_bytes(b"GGUF")


UNFIT: dict[str, tuple[Callable[[Path, Path], Any], dict[str, Any], str]] = {
    "two outputs": (two_outputs, {}, "reward.base.name: {base}: has 2 outputs; a reward model has one"),
    "an encoder": (encoder, {}, "reward.base.name: {base}: bert has no head that reads the last token of an answer"),
    "no head": (
        another_base.language_model,
        UNTRAINED,
        "reward.base.name: {base}: its config.json names GPTNeoXForCausalLM, which is no ...ForSequence",
    ),
    "a template": (broken_template, {}, "reward.base.chat_template: the tokenizer's own chat template is no Jinja"),
    "a .gguf file": (gguf, {}, "reward.base.name: {base}: a .gguf file cannot become a reward model"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_base_that_cannot_become_a_reward_model_is_refused_by_the_check_and_by_the_stage_alike(
    labelled: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    build, keys, expected = UNFIT[name]
    build(tmp_path / "base", bases("llama"))
    base = tmp_path / ("base.gguf" if name == "a .gguf file" else "base")
    made = labelled(base={"name": f"./{base.name}"}, **keys)
    problems = check(made)[0]
    assert len(problems) == 1 and problems[0].startswith(expected.format(base=f"./{base.name} ({base})"))
    with pytest.raises(ModelError) as caught:
        reward.train.run(made.stages["reward"])
    assert str(caught.value) == problems[0]


def test_the_check_reads_base_and_pairs_in_the_bases_own_tokens(
    labelled: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    another_base.language_model(tmp_path / "base", bases("llama"))

    def problems(**keys: Any) -> list[str]:
        return check(labelled(base={"name": "./base"}, **keys))[0]

    assert problems() == []
    notes = "\n".join(check(labelled(base={"name": "./base"}))[1])
    assert "reward.base: GPTNeoXForSequenceClassification" in notes and "\n" in notes
    assert "reward: adapters (r 4) in " in notes.partition("reward.base: ")[2].partition("\nalign")[0]
    assert problems(max_length=300) == ["reward.max_length: 300, but the context of reward.base has 256 tokens"]
    (one,) = problems(lora={"target_modules": ["q_proj"]})
    assert one.startswith("reward.lora.target_modules: no linear module is called 'q_proj'")
    (tmp_path / "base" / "model.safetensors").unlink()
    assert problems() == [f"reward.base.name: ./base ({tmp_path}/base): has no weights (safetensors wanted)"]


def test_rows_that_its_template_refuses_are_found_by_the_check(
    labelled: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    from trueup.checking.rows import read_file
    from trueup.data.formats import read_preferences

    base = another_base.language_model(tmp_path / "base", bases("llama"))
    refuses = "{% if 'Question 3:' in messages[0]['content'] %}{{ raise_exception('no threes') }}{% endif %}"
    (base / "chat_template.jinja").write_text(refuses + another_base.TEMPLATE)
    made = labelled(base={"name": "./base"})
    problems: list[str] = []
    file = read_file(
        "label.path", made.stages["label"].path, read_preferences, made.stages["label"], None, problems, []
    )
    assert file is not None
    reward.check.check_rows(made.stages["reward"], made.stages, Rows([file]), problems, [])
    assert len(problems) == 1 and "labels.jsonl:4: " in problems[0] and "no threes" in problems[0]
    assert problems[0].startswith("reward.base: label.path: ")


def test_a_base_is_loaded_as_its_own_section_says_and_code_of_a_strangers_run_is_not_trusted(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    labels = {"source": "import", "path": "prompts.jsonl"}
    made = campaign(
        tmp_path, label=labels, reward={"base": {"name": "some/where", "trust_remote_code": True, "dtype": "bfloat16"}}
    )
    runs.begin(made.stages["label"]).finish()
    runs.begin(made.stages["reward"]).finish()
    own = reward_model_config(made.run_dir, made.config.model)
    assert (own.name, own.trust_remote_code, own.dtype) == ("some/where", True, "bfloat16")
    stranger = reward_model_config(made.run_dir, made.config.model, trust=False)
    assert (stranger.trust_remote_code, stranger.dtype) == (False, "bfloat16")
