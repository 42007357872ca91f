"""Every key that names a model: the same refusals, which name that key, and the model as the file writes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import another_base
import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, LlamaForSequenceClassification

from trueup.campaign import Campaign
from trueup.check import check
from trueup.errors import ConfigError, ModelError
from trueup.models import loading
from trueup.models.loading import Loaded
from trueup.training import trial

Spoil = Callable[[Path], Any]
SCORERS = ("reward.base.name", "label.reward_model")
KEYS = ("model.name", *SCORERS)
"""All keys that name a model, by `tests/trueup/models/test_hub_keys.py`; adapters have tests of their own."""


def naming(names: dict[str, str]) -> dict[str, Any]:
    """The sections of a campaign file in which these keys have these values."""
    sections: dict[str, Any] = {}
    if "model.name" in names:
        sections["model"] = {"name": names["model.name"], "chat_template": "auto"}
    if "reward.base.name" in names:
        sections["reward"] = {"base": {"name": names["reward.base.name"], "device": "cpu"}}
    if "label.reward_model" in names:
        sections["label"] = {"source": "reward_model", "reward_model": names["label.reward_model"]}
    return sections


@pytest.fixture
def named(campaign: Callable[..., Campaign], bases: Callable[[str], Path], tmp_path: Path) -> Callable[..., Campaign]:
    """A campaign with a sound model of its own for each of these keys, called as the key, which `spoil` changes."""

    def make(keys: tuple[str, ...], spoil: Spoil = lambda folder: None) -> Campaign:
        for key in keys:
            shutil.copytree(bases("chatml"), tmp_path / key)
            if key == "label.reward_model":
                LlamaForSequenceClassification.from_pretrained(tmp_path / key, num_labels=1).save_pretrained(
                    tmp_path / key
                )
            spoil(tmp_path / key)
        return campaign(tmp_path, **naming({key: f"./{key}" for key in keys}))

    return make


def loaded(made: Campaign, key: str) -> Loaded:
    """The model of a key, as its stage loads it."""
    if key == "model.name":
        return loading.load_base(made.config.model)
    stage: Any = made.stages[key.partition(".")[0]]
    return loading.load_scorer(stage.scorer, stage.headless)[0]


def setting(**values: Any) -> Spoil:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def writing(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def with_weight(name: str, **settings: Any) -> Spoil:
    """Adds a weight of the shape of a head that scores."""

    def add(folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = load_file(file)
        save_file({**weights, name: weights["model.norm.weight"][None].clone()}, file, {"format": "pt"})
        setting(**settings)(folder)

    return add


def encoder(folder: Path) -> None:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=vocabulary, num_labels=1, **sizes)).save_pretrained(folder)


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


OF_TWO = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
LOST = "they are no part of Llama"
REFUSALS: dict[str, tuple[Spoil, tuple[str, ...], str]] = {
    "no directory": (shutil.rmtree, KEYS, "no such directory"),
    "an adapter": (adapter, KEYS, "is an adapter; "),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), KEYS, "has no weights (safetensors wanted)"),
    "a file cut off": (writing("model.safetensors", b"cut"), KEYS, "model.safetensors is not a whole safetensors file"),
    "no JSON": (writing("config.json", b"{"), KEYS, "could not be loaded ("),
    "code of its own": (
        setting(model_type="own", auto_map={"AutoConfig": "own.Config"}),
        KEYS,
        "brings Python of its own, which runs with all your rights",
    ),
    "other shapes": (setting(intermediate_size=48), KEYS, "of 21 weights are not in its files as its config.json "),
    "an architecture": (setting(model_type="mamba"), KEYS, "mamba is not supported: its state is carried"),
    "two outputs": (setting(**OF_TWO), SCORERS, "has 2 outputs; a reward model has one"),
    "an encoder": (encoder, SCORERS, "bert has no head that reads the last token of an answer"),
    "a value head": (with_weight("v_head.weight"), SCORERS, f"unexpected weights: v_head.weight: {LOST}"),
    "a head under another class": (
        with_weight("score.weight", architectures=["LlamaForRewardModel"]),
        ("reward.base.name",),
        f"unexpected weights: score.weight: {LOST}",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_model_is_refused_alike_under_every_key_that_names_one_by_the_check_and_when_it_is_loaded(
    named: Callable[..., Campaign], tmp_path: Path, why: str
) -> None:
    spoil, keys, text = REFUSALS[why]
    made = named(keys, spoil)
    problems = check(made)[0]
    assert len(problems) == len(keys), problems
    for key in keys:
        begins = f"{key}: ./{key} ({tmp_path}/{key}): "
        (problem,) = [problem for problem in problems if problem.startswith(begins)]
        assert text in problem
        with pytest.raises(ModelError) as caught:
            loaded(made, key)
        assert str(caught.value).startswith(begins)


def test_a_template_is_refused_under_the_key_that_chooses_it_or_else_under_the_one_that_names_the_model(
    named: Callable[..., Campaign],
) -> None:
    keys = ("model.chat_template", "reward.base.chat_template", "label.reward_model")
    problems = check(named(KEYS, writing("chat_template.jinja", b"{% if %}")))[0]
    assert len(problems) == len(keys)
    for key in keys:
        assert any(one.startswith(f"{key}: the tokenizer's own chat template is no Jinja: ") for one in problems), key


@pytest.mark.parametrize("name", ["owner/none", "./none.gguf", "~/none"])
def test_a_name_that_leads_nowhere_is_repeated_as_it_is_written(
    campaign: Callable[..., Campaign], tmp_path: Path, name: str
) -> None:
    problems = check(campaign(tmp_path, **naming(dict.fromkeys(KEYS, name))))[0]
    assert sorted(problem.partition(": ")[0] for problem in problems) == sorted(KEYS)
    for problem in problems:
        assert problem.partition(": ")[2].startswith((f"{name}: ", f"{name} (/"))


def test_a_gguf_file_is_no_reward_model_under_any_key(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    problems = check(campaign(tmp_path, **naming(dict.fromkeys(SCORERS, "base.gguf"))))[0]
    for key in SCORERS:
        assert any(one.startswith(f"{key}: base.gguf ({tmp_path}/base.gguf): a .gguf file cannot") for one in problems)


def test_a_folder_beside_the_campaign_file_that_is_called_as_a_hub_id_is_taken_and_said(
    named: Callable[..., Campaign], campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    named(KEYS)
    (tmp_path / "owner").mkdir()
    for key in KEYS:
        (tmp_path / key).rename(tmp_path / "owner" / key)
    problems, notes = check(campaign(tmp_path, **naming({key: f"owner/{key}" for key in KEYS})))
    assert problems == []
    for key in KEYS:
        means = f"means {tmp_path}/owner/{key}, beside the campaign file, and not the hub id"
        assert f"{key}: owner/{key}: {means}" in notes


@pytest.mark.parametrize("why", ["an architecture", "other shapes", "a value head", "an encoder"])
def test_a_run_refuses_a_reward_model_that_a_later_stage_names_before_its_first_stage_begins(
    named: Callable[..., Campaign], why: str
) -> None:
    spoil, _, text = REFUSALS[why]
    made = named(SCORERS, spoil)
    with pytest.raises(ConfigError) as caught:
        trial.refuse_unbuildable(made, [*made.stages])
    for key in SCORERS:
        (line,) = [line for line in str(caught.value).splitlines() if f"{key}: ./{key} (" in line]
        assert text in line


def test_weights_that_are_no_part_of_a_language_model_are_named_by_the_check_and_when_it_is_loaded(
    named: Callable[..., Campaign], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = named(("model.name",), with_weight("v_head.weight"))
    sentence = (
        f"model.name: ./model.name ({tmp_path}/model.name): unexpected weights: v_head.weight: they are no part of "
        "LlamaForCausalLM, and are left out"
    )
    problems, notes = check(made)
    assert problems == [] and sentence in notes
    loaded(made, "model.name")
    assert sentence in capsys.readouterr().out


def test_a_language_models_own_head_is_no_lost_head(named: Callable[..., Campaign], tmp_path: Path) -> None:
    """Files of a reward model may have kept it."""
    made = named(SCORERS, with_weight("lm_head.weight"))
    assert check(made)[0] == []


def test_a_template_without_a_system_turn_is_folded_for_a_reward_model_and_that_is_said(
    named: Callable[..., Campaign], capsys: pytest.CaptureFixture[str]
) -> None:
    refuses = b"{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template = refuses + another_base.TEMPLATE.encode()
    made = named(("label.reward_model",), writing("chat_template.jinja", template))
    folds = "system text is written into the next user turn (its chat template has no system turn)"
    problems, notes = check(made)
    assert problems == [] and any(note.startswith("label.reward_model: Llama") and folds in note for note in notes)
    loaded(made, "label.reward_model")
    assert capsys.readouterr().out.count(folds) == 1
