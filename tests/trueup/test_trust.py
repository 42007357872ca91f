"""Python that comes with a model runs where it is asked for, then on every path, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import architectures
from trueup.check import check
from trueup.errors import ModelError
from trueup.stages import load_object

CONFIGURATION = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
"""
MODELING = """
import torch
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
class OwnForSequenceClassification(LlamaPreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = (input_ids != self.config.pad_token_id).sum(dim=1) - 1
        return SequenceClassifierOutputWithPast(logits=self.score(hidden)[torch.arange(len(last)), last])
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny Llama under a name of its own, whose configuration, model and tokenizer are code in its folder."""
    folder = architectures.tiny_model("llama", tmp_path / "base")
    for name, code in (("configuration", CONFIGURATION), ("modeling", MODELING), ("tokenization", TOKENIZATION)):
        (folder / f"{name}_own.py").write_text(code)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own-llama", "architectures": ["OwnForCausalLM"]}
    settings["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": own}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_code_that_comes_with_a_model_is_refused_in_a_sentence(base: Path, tmp_path: Path) -> None:
    campaign = architectures.tiny_campaign(tmp_path, base)
    (problem,) = check(campaign)[0]
    assert problem == (
        f"model.name: {base}: brings Python of its own, which runs with all your rights: read it, and set "
        "model.trust_remote_code: true if you trust it"
    )
    with pytest.raises(ModelError, match="brings Python of its own"):
        load_object(campaign.stages["sft"].run)(campaign.stages["sft"])


def test_code_that_brings_no_reward_model_is_known_before_anything_is_trained(base: Path, tmp_path: Path) -> None:
    settings = json.loads((base / "config.json").read_text())
    del settings["auto_map"]["AutoModelForSequenceClassification"]
    (base / "config.json").write_text(json.dumps(settings))
    (problem,) = check(architectures.tiny_campaign(tmp_path, base, model={"trust_remote_code": True}))[0]
    assert problem == (
        f"reward: model.name: {base}: neither transformers nor the model's own code has a reward model (sequence "
        "classification) of own-llama"
    )


def test_where_it_is_trusted_it_runs_in_every_stage(base: Path, tmp_path: Path) -> None:
    def made(**sections: Any) -> Any:
        return architectures.tiny_campaign(
            tmp_path, base, model={"trust_remote_code": True}, sample={"num_workers": 2}, **sections
        )

    campaign = made()
    assert check(campaign)[0] == []
    for stage in architectures.STAGES:
        load_object(campaign.stages[stage].run)(campaign.stages[stage])
    for stage in ("sft", "reward", "align"):
        settings = json.loads((campaign.run_dir / stage / "model" / "config.json").read_text())
        assert settings["model_type"] == "own-llama", "saved as what it is"
    label = made(label={"source": "reward_model", "reward_model": "run/reward/model"})
    assert check(label)[0] == []
    load_object(label.stages["label"].run)(label.stages["label"])
