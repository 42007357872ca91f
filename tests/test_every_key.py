"""A key that is accepted is obeyed: for every key of every section, another value changes something that can be seen.

Each key has an entry in one of the tables below; a new key without one fails the first test. Most entries run the real
stage of a tiny campaign twice, with and without the change, and compare what was seen:

result     every file that the stage leaves, but for times and for what only repeats the configuration
trainer    the trainer as it stands before the first step: TRL's arguments, what is trained, the rows
page       what the labelling page asks a person who answers it
calls      how often a function was called, and with what
refused    the value is refused, as the campaign file is read or by the stage, with these words

Keys that only a page or a machine shows name the test that shows them.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load_file

import ui.label.run
from reward.config import RewardConfig
from rlhf.align.config.labelled import DPOConfig, KTOConfig, SimPOConfig
from rlhf.align.config.online import GRPOConfig, PPOConfig, RLOOConfig
from rlhf.align.config.paid import BestOfNConfig
from rlhf.compare.config import CompareConfig
from rlhf.config import CheckConfig
from sft.config import DataSource, SampleConfig, SFTConfig
from trueup import runs
from trueup.campaign import CampaignConfig
from trueup.config import Section, SplitConfig
from trueup.data.records import CandidateSet, read_rows
from trueup.errors import LabelsPending, TrueupError
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.sampling import Decoding
from trueup.stages import load_object
from trueup.training import loop
from trueup.training.allowed import ALLOWED
from trueup.training.config import LoRAConfig
from ui.labels.config import LabelConfig
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import slot
from ui.labels.tasks import BadJudgement, Judgement, Settings
from ui.sources.report import gold

REPOSITORY = Path(__file__).parents[1]
Values = dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """`stage.keys` of a campaign as `base` has it, and as `change` has it on top: `see` must differ, or the words be
    found in a refusal."""

    change: Values
    base: Values = field(default_factory=dict)
    see: str = "result"
    words: str = ""
    stage: str | None = None
    """The stage whose result is looked at, where it is not the section's own."""


@dataclass(frozen=True)
class ShownBy:
    """The behaviour is shown by a test in this file, which uses this name."""

    file: str
    name: str


def trainer(**change: Any) -> Probe:
    return Probe(change, see="trainer")


def refused(words: str, base: Values | None = None, **change: Any) -> Probe:
    return Probe(change, base or {}, see="refused", words=words)


LORA_OF_ONE_LAYER = {"lora": {"r": 4, "last_layers": 1}}
TRAINED: dict[str, Any] = {
    "learning_rate": trainer(learning_rate=2e-3),
    "num_train_epochs": Probe({"num_train_epochs": 3}, {"max_steps": -1, "num_train_epochs": 2}, "trainer"),
    "max_steps": trainer(max_steps=8),
    "per_device_train_batch_size": trainer(per_device_train_batch_size=2),
    "train_batch_size": trainer(train_batch_size=2),
    "max_length": refused("max_length", max_length=20),
    "lr_scheduler_type": trainer(lr_scheduler_type="constant"),
    "warmup_steps": trainer(warmup_steps=2),
    "max_grad_norm": trainer(max_grad_norm=0.1),
    "save_steps": trainer(save_steps=8),
    "report_to": refused("TensorBoard", report_to=["tensorboard"]),  # transformers asks for a package
    "full_finetuning": trainer(full_finetuning=True),
    "lora": trainer(lora={"r": 2}),
    "trainer_args": trainer(trainer_args={"weight_decay": 0.3}),
    "seed": trainer(seed=7),
}
"""Keys that every stage has that trains."""

LORA = {
    "r": trainer(lora={"r": 2}),
    "lora_alpha": trainer(lora={"r": 4, "lora_alpha": 3}),
    "lora_dropout": trainer(lora={"r": 4, "lora_dropout": 0.5}),
    "target_modules": trainer(lora={"r": 4, "target_modules": ["q_proj"]}),
    "last_layers": trainer(lora={"r": 4, "last_layers": 1}),
}
"""Keys of `sft.lora`, `reward.lora` and `align.lora`."""

SFT = {
    "leave_out": Probe({"leave_out": ["creative"]}, see="trainer"),
    "data": Probe({"data": ["more.jsonl"]}, see="trainer"),
    "overlong": ShownBy("tests/sft/test_long.py", 'overlong="split"'),  # no row here is too long
    "train_on": trainer(train_on="all"),
    "packing": trainer(packing=True),
    "near_duplicates": ShownBy("tests/test_near_heldout.py", '"near_duplicates": "drop"'),  # there are none here
    "contamination": ShownBy("tests/sft/test_contamination.py", '"contamination": "keep"'),  # there is none here
}
REWARD = {
    "pairs": Probe({"pairs": "extremes"}, see="trainer"),
    "criteria_weights": ShownBy("tests/reward/test_criteria.py", "criteria_weights"),  # nobody was asked for any
    "ideal_answers": ShownBy("tests/test_labels_to_learning.py", "ideal_answers"),  # nobody wrote any
    "center_rewards_coefficient": Probe({"center_rewards_coefficient": 1.0}),
    "score_candidates": Probe({"score_candidates": True}),
    "grade_margins": ShownBy("tests/reward/test_comparisons.py", "grade_margins"),
    "ties": ShownBy("tests/reward/test_comparisons.py", "ties"),
    "annotator_weights": ShownBy("tests/reward/test_annotators.py", "annotator_weights"),  # there is one annotator
    "label_smoothing": Probe({"label_smoothing": 0.3}),
    "base": ShownBy("tests/reward/test_base.py", "base"),
    "start": ShownBy("tests/reward/test_start.py", "start"),
    "ensemble": Probe({"ensemble": 3}),
}
SMALL = {"prompts": "prompts.jsonl", "rollout_batch_size": 8, "max_new_tokens": 6, "eval_prompts": 2}
START = {"start": ShownBy("tests/trueup/test_rounds.py", "align.start=last_round")}
DPO = {
    **START,
    "algorithm": Probe({"algorithm": "grpo", "rewards": {"rubric": 1.0}, **SMALL}, see="trainer"),
    "pairs": Probe({"pairs": "extremes"}, see="trainer"),
    "beta": trainer(beta=0.4),
    "criteria_weights": ShownBy("tests/reward/test_criteria.py", "criteria_weights"),  # nobody was asked for any
    "ideal_answers": ShownBy("tests/test_labels_to_learning.py", "ideal_answers"),  # nobody wrote any
    "loss_type": Probe({"loss_type": "hinge"}),
    "annotator_weights": ShownBy("tests/reward/test_annotators.py", "annotator_weights"),  # there is one annotator
    "label_smoothing": Probe({"label_smoothing": 0.2}),
    "grades": ShownBy("tests/rlhf/align/preferences/test_weighing.py", "grades"),  # no label here has any
    "pair_weight": ShownBy("tests/rlhf/align/preferences/test_weighing.py", "pair_weight"),  # all are of one size
    "ties": ShownBy("tests/rlhf/align/preferences/test_weighing.py", "ties"),  # there are none
    "keep_steps": Probe({"keep_steps": 0}),
    "full_finetuning": Probe({"full_finetuning": True, "keep_steps": 0}, {"keep_steps": 0}, see="trainer"),
}
SIMPO = {
    **START,
    **{key: entry for key, entry in DPO.items() if key in ("pairs", "criteria_weights", "ideal_answers", "keep_steps")},
    "algorithm": Probe({"algorithm": "dpo"}, see="trainer"),
    "beta": trainer(beta=0.4),
    "target_margin": trainer(target_margin=0.0),
    "full_finetuning": DPO["full_finetuning"],
}
KTO = {
    **START,
    "algorithm": Probe({"algorithm": "dpo"}, see="trainer"),
    "pairs": Probe({"pairs": "all"}, see="trainer"),
    "beta": trainer(beta=0.4),
    "criteria_weights": ShownBy("tests/reward/test_criteria.py", "criteria_weights"),  # nobody was asked for any
    "ideal_answers": ShownBy("tests/test_labels_to_learning.py", "ideal_answers"),  # nobody wrote any
    "desirable_weight": trainer(desirable_weight=2.0),
    "undesirable_weight": trainer(undesirable_weight=2.0),
    "keep_steps": Probe({"keep_steps": 0}),
    "full_finetuning": Probe({"full_finetuning": True, "keep_steps": 0}, {"keep_steps": 0}, see="trainer"),
}
ONLINE = {
    **START,
    "prompts": Probe({"prompts": "asked.jsonl"}, see="trainer"),
    "on_bad_rows": refused("bad.jsonl", {"prompts": "bad.jsonl", "on_bad_rows": "drop"}, on_bad_rows="refuse"),
    "ignore_columns": refused("spam", {"prompts": "spam.jsonl", "ignore_columns": ["spam"]}, ignore_columns=[]),
    "columns": refused("no row has a value", {"prompts": "asked.jsonl"}, columns={"prompt": "asked"}),
    "filter": refused("no row has a value", {"prompts": "asked.jsonl"}, filter={"language": "en"}),
    "max_rows": Probe({"max_rows": 0.9}, {"prompts": "asked.jsonl"}, see="trainer"),
    "rewards": Probe({"rewards": {"rewards.py:short": 1.0}}),
    "on_failed_reward_model": ShownBy("tests/rlhf/align/test_rewards.py", "on_failed_reward_model"),
    "reward_caution": ShownBy("tests/rlhf/align/test_caution.py", "reward_caution"),
    "rubric": ShownBy("tests/rlhf/align/test_rewards.py", "rubric"),  # there is one
    "checks": Probe({"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl"}], "rewards": {"gsm8k": 1.0}}, see="trainer"),
    "missing_eos_penalty": Probe({"missing_eos_penalty": 5.0}),
    "rollout_batch_size": trainer(rollout_batch_size=16),
    "num_generations": trainer(num_generations=4),
    "max_new_tokens": trainer(max_new_tokens=3),
    "max_thinking_tokens": ShownBy("tests/test_thinking.py", "max_thinking_tokens"),
    "temperature": trainer(temperature=0.5),
    "keep_steps": Probe({"keep_steps": 0}),
    "eval_prompts": Probe({"eval_prompts": 3}),
    "kl_budget": Probe({"kl_budget": 1e-9}, {"keep_steps": 0}),
}
BEST_OF_N = {
    **{key: entry for key, entry in ONLINE.items() if key not in ("rollout_batch_size", "temperature", "kl_budget")},
    "algorithm": Probe({"algorithm": "grpo", "rollout_batch_size": 8}, see="trainer"),
    "checks": Probe(
        {"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl"}], "rewards": {"gsm8k": 1.0, "rewards.py:long": 1.0}},
        see="trainer",
    ),
    "missing_eos_penalty": refused("no answer ended by itself", missing_eos_penalty=1.0),
    "temperature": trainer(temperature=0.9),
    "kl_budget": Probe({"kl_budget": 1e-9}),
}
PPO = {
    **ONLINE,
    "algorithm": Probe({"algorithm": "grpo"}, {"num_ppo_epochs": None}, "trainer"),
    "num_ppo_epochs": trainer(num_ppo_epochs=1),
    "kl_coef": Probe({"kl_coef": 5.0}, {"max_steps": 8}),
    "kl_target": Probe({"kl_target": 0.01}, {"max_steps": 8}),
    "kl_horizon": Probe({"kl_horizon": 5}, {"max_steps": 8, "kl_target": 0.01}),
    "gamma": Probe({"gamma": 0.5}),
    "lam": Probe({"lam": 0.1}),
    "cliprange": Probe({"cliprange": 1e-6}),
    "cliprange_value": Probe({"cliprange_value": 1e-6}),
    "vf_coef": Probe({"vf_coef": 3.0}),
    "whiten_rewards": Probe({"whiten_rewards": True}),
    "critic_learning_rate": Probe({"critic_learning_rate": 0.0}),
    "critic_warmup_rollouts": Probe({"critic_warmup_rollouts": 1}),
    "ptx_coef": Probe({"ptx_coef": 2.0}, {"ptx_coef": 0.5, "ptx_data": ["demonstrations.jsonl"]}),
    "ptx_data": Probe({"ptx_data": ["more.jsonl"]}, {"ptx_coef": 0.5, "ptx_data": ["demonstrations.jsonl"]}),
    "guards": ShownBy("tests/rlhf/align/ppo/test_ppo.py", 'guards="stop"'),
}
GROUPED = {
    **ONLINE,
    "algorithm": Probe({"algorithm": "ppo", "num_iterations": None, "beta": None}, see="trainer"),
    "beta": trainer(beta=0.4),
    "num_iterations": trainer(num_iterations=1),
}
SAMPLE = {
    "seed": Probe({"seed": 3}),
    "prompts": Probe({"prompts": "asked.jsonl"}),
    "on_bad_rows": refused("bad.jsonl", {"prompts": "bad.jsonl", "on_bad_rows": "drop"}, on_bad_rows="refuse"),
    "ignore_columns": refused("spam", {"prompts": "spam.jsonl", "ignore_columns": ["spam"]}, ignore_columns=[]),
    "columns": refused("no row has a value", {"prompts": "asked.jsonl"}, columns={"prompt": "asked"}),
    "filter": refused("no row has a value", {"prompts": "asked.jsonl"}, filter={"language": "en"}),
    "max_rows": Probe({"max_rows": 3}),
    "max_prompts": Probe({"max_prompts": 3}),
    "only": Probe({"only": "heldout"}),
    "num_candidates": Probe({"num_candidates": 2}),
    "max_new_tokens": Probe({"max_new_tokens": 4}),
    "max_thinking_tokens": ShownBy("tests/test_thinking.py", "max_thinking_tokens"),
    "temperature": Probe({"temperature": 0.3}),
    "top_k": Probe({"top_k": 2}),
    "top_p": Probe({"top_p": 0.3}),
    "batch_size": Probe({"batch_size": 3}, see="calls:trueup.models.sampling.sample"),
    "num_workers": Probe({"num_workers": 2}, see="calls:sft.sample.sample_saved"),
    "sft_share": ShownBy("tests/trueup/test_rounds.py", "sft_share"),
    "best_share": ShownBy("tests/trueup/test_rounds.py", "best_share"),
    "best_of": ShownBy("tests/trueup/test_rounds.py", "best_of"),
}
COMPARE = {
    "seed": ShownBy("tests/rlhf/compare/test_compare.py", "seed"),
    "judges": Probe({"judges": ["rubric", "reward_model"]}, {"judges": ["rubric"]}),
    "rubric": ShownBy("tests/rlhf/compare/test_compare.py", "rubric"),  # there is one
    "judge_url": ShownBy("tests/rlhf/compare/test_compare.py", "judge_url"),
    "judge_model": ShownBy("tests/rlhf/compare/test_compare.py", "judge_model"),
    "judge_parameters": ShownBy("tests/rlhf/compare/test_endpoint_judge.py", "judge_parameters"),
    "judge_pairs_per_prompt": ShownBy("tests/rlhf/compare/test_endpoint_judge.py", "pairs_per_prompt=pairs"),
    "base": Probe({"base": True}),
    "others": ShownBy("tests/rlhf/compare/test_compare.py", '"others": {"again"'),
    "greedy": Probe({"greedy": True}),
    "step_prompts": Probe({"step_prompts": 2}),
    "kl_budget": Probe({"kl_budget": 1e-9}),
    "checks": Probe({"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl", "max_new_tokens": 4}]}),
    "confidence": Probe({"confidence": 0.6}),
    "batch_size": Probe({"batch_size": 3}, see="calls:rlhf.compare.answers.sample_resumed"),
    "num_workers": Probe({"num_workers": 2}, see="calls:rlhf.compare.answers.sample_resumed"),
}
CHECK = {
    "kind": ShownBy("tests/rlhf/test_checks.py", "ifeval"),
    "path": ShownBy("tests/rlhf/test_checks.py", "jsonl"),
    "limit": Probe(
        {"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl", "max_new_tokens": 4, "limit": 1}]},
        {"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl", "max_new_tokens": 4}]},
    ),
    "max_new_tokens": Probe(
        {"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl", "max_new_tokens": 2}]},
        {"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl", "max_new_tokens": 8}]},
        see="calls:rlhf.compare.answers.sample_resumed",
    ),
    "max_thinking_tokens": ShownBy("tests/trueup/models/test_reasoning.py", "max_thinking_tokens"),
}
"""Keys of an entry of `compare.checks`, and of `align.checks`."""
DATA_SOURCE = {
    "path": Probe({"data": [{"path": "more.jsonl"}]}, see="trainer"),
    "max_rows": Probe({"data": [{"path": "demonstrations.jsonl", "max_rows": 3}]}, see="trainer"),
    "weight": Probe({"data": [{"path": "demonstrations.jsonl", "weight": 1.5}]}, see="trainer"),
    "max_per_category": Probe({"data": [{"path": "demonstrations.jsonl", "max_per_category": 1}]}, see="trainer"),
    "on_bad_rows": refused(
        "bad.jsonl",
        {"data": [{"path": "bad.jsonl", "on_bad_rows": "drop"}]},
        data=[{"path": "bad.jsonl", "on_bad_rows": "refuse"}],
    ),
    "ignore_columns": refused(
        "spam",
        {"data": [{"path": "spam.jsonl", "ignore_columns": ["spam"]}]},
        data=[{"path": "spam.jsonl"}],
    ),
    "columns": refused(
        "no row has a value",
        {"data": ["demonstrations.jsonl"]},
        data=[{"path": "demonstrations.jsonl", "columns": {"prompt": "asked"}}],
    ),
    "filter": refused(
        "no row has a value",
        {"data": ["demonstrations.jsonl"]},
        data=[{"path": "demonstrations.jsonl", "filter": {"language": "en"}}],
    ),
}
"""Keys of an entry of `sft.data`."""
PEOPLE: Values = {"source": "human", "gold_share": 0.0, "repeat_share": 0.0}
KNOWN: Values = {**PEOPLE, "gold": "known.jsonl", "gold_share": 0.5}


def asked(base: Values | None = None, **change: Any) -> Probe:
    return Probe(change, base or PEOPLE, see="page")


LABEL = {
    "seed": asked(seed=3),
    "source": Probe({"source": "simulated"}),
    "also_use": Probe({"also_use": ["simulated"]}),
    "store": asked(store="sqlite:///elsewhere.sqlite"),
    "task": asked(task="ranking"),
    "answers_per_item": asked({**PEOPLE, "task": "ranking", "answers_per_item": 4}, answers_per_item=3),
    "pairs_per_prompt": asked(pairs_per_prompt=2),
    "labels_per_pair": asked(labels_per_pair=2),
    "target_labels": asked(target_labels=5),
    "scale": ShownBy("tests/ui/labels/test_service.py", 'scale="plain"'),
    "criteria": ShownBy("tests/ui/labels/test_service.py", "criteria="),
    "rationale_share": asked(rationale_share=1.0),
    "guideline": ShownBy("tests/ui/test_app.py", "guideline="),
    "lease_minutes": asked(lease_minutes=99.0),
    "gold": asked({**KNOWN, "gold": None}, gold="known.jsonl"),
    "gold_share": asked(KNOWN, gold_share=0.05),
    # Only what was labelled twenty answers ago is asked again.
    "repeat_share": asked({**PEOPLE, "pairs_per_prompt": 3}, repeat_share=0.5),
    "gold_pass": asked({**KNOWN, "gold_pass": 0.0}, gold_pass=1.0),
    "exclude_failed_gold": ShownBy("tests/ui/label/test_run.py", "exclude_failed_gold=exclude"),
    "qualification": asked(qualification="known.jsonl"),
    "qualification_pass": ShownBy("tests/ui/labels/test_service.py", "qualification_pass"),
    "selection": asked({**PEOPLE, "scores": "scores.jsonl"}, selection="uncertainty"),
    "control_share": asked(
        {**PEOPLE, "scores": "scores.jsonl", "selection": "uncertainty", "control_share": 0.0}, control_share=1.0
    ),
    "scores": asked({**PEOPLE, "selection": "uncertainty", "scores": "scores.jsonl"}, scores="others.jsonl"),
    "rubric": ShownBy("tests/ui/label/test_run.py", "rubric"),  # there is one
    "path": Probe({"path": "fewer.jsonl"}),
    "on_bad_rows": refused("bad.jsonl", {"path": "bad.jsonl", "on_bad_rows": "drop"}, on_bad_rows="refuse"),
    "ignore_columns": refused("spam", {"path": "spam.jsonl", "ignore_columns": ["spam"]}, ignore_columns=[]),
    "columns": refused("no row has a value", {"path": "fewer.jsonl"}, columns={"prompt": "asked"}),
    "filter": refused("no row has a value", {"path": "fewer.jsonl"}, filter={"language": "en"}),
    "max_rows": Probe({"max_rows": 0.5}),
    "judge_url": ShownBy("tests/ui/label/test_run.py", "judge_url"),
    "judge_model": ShownBy("tests/ui/label/test_run.py", "judge_model"),
    "judge_parameters": ShownBy("tests/ui/label/test_run.py", "judge_parameters"),
    "reward_model": Probe({"reward_model": "judge"}, {"source": "reward_model", "reward_model": "run/reward/model"}),
    "reward_model_revision": refused(
        "reward_model_revision: belongs to a hub id",
        {"source": "reward_model", "reward_model": "run/reward/model"},
        reward_model_revision="main",
    ),
}
MODEL = {
    "name": Probe({"name": "other"}, stage="sft", see="trainer"),
    "revision": refused("revision: belongs to a hub id", revision="main"),
    "adapter": ShownBy("tests/sft/test_start.py", "adapted"),
    "adapter_revision": refused("adapter_revision: belongs to a hub id", adapter_revision="main"),
    "chat_template": Probe({"chat_template": "chatml"}, stage="sft", see="trainer"),
    "chat_template_kwargs": ShownBy("tests/trueup/models/test_templates.py", "chat_template_kwargs"),
    "thinking": ShownBy("tests/trueup/models/test_templates.py", "thinking"),
    "fold_system": ShownBy("tests/trueup/models/test_templates.py", "fold_system"),
    "template_date": ShownBy("tests/trueup/models/test_templates.py", "template_date"),
    "new_tokens": Probe({"new_tokens": True}, {"chat_template": "chatml"}, "trainer", stage="sft"),
    "dtype": Probe({"dtype": "bfloat16"}, stage="sft", see="trainer"),
    "device": refused("mps", device="mps"),  # which no machine has that runs this
    "attn_implementation": Probe({"attn_implementation": "eager"}, stage="sft", see="trainer"),
    "load_in_4bit": refused("load_in_4bit: needs a CUDA device", load_in_4bit=True),
    "trust_remote_code": Probe(
        {"trust_remote_code": True}, stage="sft", see="calls:trueup.models.loading.AutoTokenizer.from_pretrained"
    ),
}
SPLIT = {
    "heldout_fraction": Probe({"heldout_fraction": 0.6}, stage="sft", see="trainer"),
    "judge_fraction": Probe({"judge_fraction": 0.4}, stage="reward", see="trainer"),
    "salt": Probe({"salt": "another"}, stage="sft", see="trainer"),
    "near_duplicates": ShownBy("tests/test_near_heldout.py", '"near_duplicates": near'),  # there are none here
}
TOP = {
    "name": ShownBy("tests/trueup/test_campaign.py", "run_dir"),
    "run_dir": ShownBy("tests/trueup/test_campaign.py", "run_dir"),
    "rounds": ShownBy("tests/trueup/test_rounds.py", "rounds=3"),
    "launch": ShownBy("tests/trueup/test_launch.py", 'launch="ddp"'),
    "processes": ShownBy("tests/trueup/test_launch.py", "processes=2"),
    "labels_per_round": ShownBy("tests/trueup/test_rounds.py", "labels_per_round=12"),
    "seed": Probe({"seed": 5}, stage="sft", see="trainer"),
    "model": ShownBy("tests/test_every_key.py", "MODEL"),
    "split": ShownBy("tests/test_every_key.py", "SPLIT"),
}
OF_ANOTHER_SECTION = {"run_dir", "model", "split"}
"""What a stage is given from the top of the file."""
SECTIONS: dict[str, tuple[type[Section], dict[str, Any]]] = {
    "top": (CampaignConfig, TOP),
    "model": (ModelConfig, MODEL),
    "split": (SplitConfig, SPLIT),
    "sft": (SFTConfig, {**TRAINED, **SFT}),
    "sft.data": (DataSource, DATA_SOURCE),
    "sft.lora": (LoRAConfig, LORA),
    "reward.lora": (LoRAConfig, LORA),
    "dpo.lora": (LoRAConfig, LORA),
    "sample": (SampleConfig, SAMPLE),
    "label": (LabelConfig, LABEL),
    "reward": (RewardConfig, {**TRAINED, **REWARD}),
    "dpo": (DPOConfig, {**TRAINED, **DPO}),
    "simpo": (SimPOConfig, {**TRAINED, **SIMPO}),
    "kto": (KTOConfig, {**TRAINED, **KTO}),
    "best_of_n": (BestOfNConfig, {**TRAINED, **BEST_OF_N}),
    "ppo": (PPOConfig, {**TRAINED, **PPO}),
    "grpo": (GRPOConfig, {**TRAINED, **GROUPED}),
    "rloo": (RLOOConfig, {**TRAINED, **GROUPED}),
    "compare": (CompareConfig, COMPARE),
    "compare.checks": (CheckConfig, CHECK),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_has_an_entry(section: str) -> None:
    schema, table = SECTIONS[section]
    keys = set(schema.model_fields) - (set() if section == "top" else OF_ANOTHER_SECTION)
    assert keys - set(table) == set(), f"{section}: new keys; add an entry that shows what another value changes"
    assert set(table) - keys == set(), f"{section}: entries of keys that are gone"


NAMED = [
    (s, key, entry) for s, (_, table) in SECTIONS.items() for key, entry in table.items() if isinstance(entry, ShownBy)
]


@pytest.mark.parametrize(("section", "key", "entry"), NAMED, ids=[f"{s}.{key}" for s, key, _ in NAMED])
def test_the_test_that_shows_it_is_there(section: str, key: str, entry: ShownBy) -> None:
    place = REPOSITORY / entry.file
    files = [place] if place.is_file() else sorted(place.rglob("test_*.py"))
    assert any(entry.name in file.read_text(encoding="utf-8") for file in files), f"{section}.{key}: {entry}"


# ---- trainer_args -----------------------------------------------------------------------------------------------

OPTIMISER: dict[str, tuple[Any, Values]] = {
    "adam_beta1": (0.1, {}),
    "adam_beta2": (0.5, {}),
    "adam_epsilon": (1.0, {}),
    "weight_decay": (30.0, {}),
    "lr_scheduler_kwargs": ({"num_cycles": 3}, {"lr_scheduler_type": "cosine_with_restarts"}),
}
SGD: dict[str, tuple[Any, Values]] = {"optim": ("sgd", {})}
NOISE: dict[str, tuple[Any, Values]] = {"neftune_noise_alpha": (50.0, {})}
FURTHER: Values = {"max_steps": 16, "learning_rate": 1e-3, "rollout_batch_size": 16, "num_generations": 4}
"""A training in which ratios leave 1 on both sides, for good answers and for bad ones."""
ARGUMENTS: dict[str, dict[str, tuple[Any, Values]]] = {
    "sft": {**OPTIMISER, **SGD, **NOISE, "label_smoothing_factor": (0.3, {}), "loss_type": ("dft", {})},
    "reward": {**OPTIMISER, **SGD, **NOISE},
    "dpo": {
        **OPTIMISER,
        **SGD,
        "f_divergence_type": ("js_divergence", {}),
        "f_alpha_divergence_coef": (0.2, {"trainer_args": {"f_divergence_type": "alpha_divergence"}}),
        "use_weighting": (True, {}),
    },
    "kto": {**OPTIMISER, **SGD},
    "best_of_n": {**OPTIMISER, **SGD},
    "simpo": {**OPTIMISER, **SGD},
    "ppo": OPTIMISER,
    "grpo": {
        **OPTIMISER,
        **SGD,
        "epsilon": (1e-6, FURTHER),
        "epsilon_high": (1e-6, FURTHER),
        "delta": (1e-3, {}),
        "loss_type": ("cispo", {}),
        "scale_rewards": ("none", {}),
        "importance_sampling_level": ("sequence", {}),
        "mask_truncated_completions": (True, {}),
        "entropy_coef": (3.0, {}),
        "top_entropy_quantile": (0.2, {}),
        "off_policy_mask_threshold": (1e-9, FURTHER),
        "use_bias_correction_kl": (False, {**FURTHER, "beta": 1.0}),
        **{
            f"sapo_temperature_{sign}": (9.0, {**FURTHER, "trainer_args": {"loss_type": "sapo"}})
            for sign in ("neg", "pos")
        },
        **{
            f"vespo_{name}": (0.3, {**FURTHER, "trainer_args": {"loss_type": "vespo"}})
            for name in ("k_neg", "k_pos", "lambda_neg", "lambda_pos")
        },
    },
    "rloo": {
        **OPTIMISER,
        **SGD,
        "epsilon": (1e-6, FURTHER),
        "epsilon_high": (1e-6, FURTHER),
        "mask_truncated_completions": (True, {}),
        "normalize_advantages": (True, {}),
        "reward_clip_range": ((-0.01, 0.01), {}),
    },
}
"""Arguments of TRL that change what is learnt: {name: (a value, what the section says besides)}."""
REACHES_TRL = (
    "accelerator_config average_tokens_across_devices dataloader_num_workers dataloader_persistent_workers "
    "dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb "
    "ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed fsdp fsdp_config full_determinism "
    "gradient_checkpointing gradient_checkpointing_kwargs log_level log_level_replica log_on_each_node "
    "pad_to_multiple_of parallelism_config project run_name tf32 torch_empty_cache_steps trackio_bucket_id "
    "trackio_space_id trackio_static_space_id"
)
"""Keys of memory, processes and trackers: they change where and how fast it runs, and what is told of it."""


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_every_argument_of_trl_that_is_let_through_is_seen_to_do_something(kind: str) -> None:
    assert ALLOWED[kind] - set(REACHES_TRL.split()) == set(ARGUMENTS[kind])


LET_THROUGH = [(kind, name, *given) for kind, table in ARGUMENTS.items() for name, given in table.items()]


@pytest.mark.parametrize(
    ("kind", "name", "value", "base"), LET_THROUGH, ids=[f"{kind}.{name}" for kind, name, *_ in LET_THROUGH]
)
def test_an_argument_that_is_let_through_changes_what_is_learnt(
    kind: str, name: str, value: Any, base: Values, bench: Bench
) -> None:
    before = bench.look(kind, base, "result", None)
    after = bench.look(kind, {**base, "trainer_args": {**base.get("trainer_args", {}), name: value}}, "result", None)
    (model,) = (path for path in before if path == "model/model.safetensors")
    assert before[model] != after[model]


# ---- The tiny campaign ------------------------------------------------------------------------------------------

REWARDS = """
def long(prompts, completions, **columns):
    return [len(said[-1]["content"]) * 0.1 for said in completions]

def short(prompts, completions, **columns):
    return [-len(said[-1]["content"]) * 0.1 for said in completions]
"""
ON_LINE = {
    "prompts": "prompts.jsonl",
    "rewards": {"rewards.py:long": 1.0},
    "rollout_batch_size": 8,
    "num_generations": 2,
    "max_new_tokens": 6,
    "eval_prompts": 2,
    "keep_steps": 1,
}
OF_KIND: dict[str, tuple[str, Values]] = {
    "sft": ("sft", {}),
    "sample": ("sample", {"num_candidates": 4}),
    "label": ("label", {"source": "import", "path": "labels.jsonl"}),
    "reward": ("reward", {}),
    "dpo": ("align", {"keep_steps": 1}),
    "simpo": ("align", {"algorithm": "simpo", "keep_steps": 1}),
    "kto": ("align", {"algorithm": "kto", "keep_steps": 1}),
    "best_of_n": (
        "align",
        # The base model, which stands for the SFT policy here, ends no answer.
        {**ON_LINE, "algorithm": "best_of_n", "rollout_batch_size": None, "missing_eos_penalty": 0.0},
    ),
    "ppo": ("align", {**ON_LINE, "algorithm": "ppo", "num_ppo_epochs": 2}),
    "grpo": ("align", {**ON_LINE, "algorithm": "grpo", "num_iterations": 2}),
    "rloo": ("align", {**ON_LINE, "algorithm": "rloo", "num_iterations": 2}),
    "compare": ("compare", {"greedy": False, "judges": ["rubric"], "step_prompts": 0}),
}
"""The section of each kind, and what it says by itself."""
TIMES = re.compile(
    r"runtime|per_second|tokens_per_s|time|duration|peak|memory|flos|created_utc|sha256|label_id|item_id"
)
REPEATED = {"kl_budget", "confidence", "schedule", "rewards", "decoding", "algorithm", "sampler"}
"""What in a report or a row only repeats the configuration."""


class Captured(Exception):
    """Training would begin now."""


@dataclass
class Bench:
    """Runs stages of the tiny campaign, each after parents that are made once."""

    folder: Path
    campaign: Callable[..., Any]
    jsonl: Callable[..., Path]
    base: Path
    seen: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def load(self, sections: Values) -> Any:
        where = self.folder / str(self.count)
        self.count += 1
        where.mkdir()
        texts = [f"What is {i}, tea or milk?" for i in range(14)]
        ranked = [
            {"prompt": text, "completions": ["Tea is warm.", f"Milk {i}.", "No."], "tiers": [[0], [1], [2]]}
            for i, text in enumerate(texts)
        ]
        self.jsonl(where / "labels.jsonl", ranked)
        self.jsonl(where / "fewer.jsonl", ranked[:9])
        self.jsonl(where / "asked.jsonl", [{"prompt": text} for text in texts])
        more = [{"prompt": text, "completion": "Tea, I say, and no milk at all."} for text in texts]
        self.jsonl(where / "more.jsonl", more)
        good = {"prompt": "Is it good?", "completion": "Tea.", "chosen": "Tea.", "rejected": "Milk."}
        rows = [{**good, "prompt": f"{text} Now?"} for text in texts]
        self.jsonl(where / "bad.jsonl", [*rows, "{no JSON"])
        self.jsonl(where / "spam.jsonl", [{**row, "spam": True} for row in rows])
        sums = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(16)]
        self.jsonl(where / "gsm8k.jsonl", sums)
        known = [{"prompt": f"Known {i}?", "chosen": f"Right {i}.", "rejected": f"Wrong {i}."} for i in range(9)]
        self.jsonl(where / "known.jsonl", known)
        (where / "rewards.py").write_text(REWARDS)
        kept = self.folder / "kept"
        for name in ("run", "judge", "other") if kept.exists() else ():
            shutil.copytree(kept / name, where / name)
        if kept.exists():
            asked = read_rows(where / "run" / "candidates" / "candidates.jsonl", CandidateSet)
            for name, far in (("scores", 0), ("others", 1)):
                spread = [
                    [float(k * ((i + far) % 2) * 9) for k in range(len(row.candidates))] for i, row in enumerate(asked)
                ]
                scored = zip(asked, spread, strict=True)
                self.jsonl(where / f"{name}.jsonl", [{"prompt_id": r.prompt_id, "scores": s} for r, s in scored])
        return where, self.campaign(where, **{"label": OF_KIND["label"][1], **sections})

    def prepare(self) -> None:
        where, made = self.load({"sample": OF_KIND["sample"][1]})
        stage = runs.begin(made.stages["sft"])
        loading.save(loading.load_base(made.config.model), stage.dir / "model")
        stage.trained_on([])
        stage.finish()
        load_object(made.stages["sample"].run)(made.stages["sample"])
        ui.label.run.run(made.stages["label"])
        for name in ("reward", "align"):
            load_object(made.stages[name].run)(made.stages[name])
        other = loading.load_reward_model(made.run_dir / "reward" / "model", made.config.model)
        with torch.no_grad():
            other.model.score.weight.mul_(-1)
        loading.save(other, where / "judge")
        policy = loading.load_policy(made.run_dir / "sft" / "model", made.config.model)
        with torch.no_grad():
            policy.model.get_input_embeddings().weight.mul_(1.1)
        loading.save(policy, where / "other")
        (self.folder / "kept").mkdir()
        for name in ("run", "judge", "other"):
            shutil.copytree(where / name, self.folder / "kept" / name)

    def look(self, section: str, keys: Values, see: str, stage: str | None) -> Any:
        name = json.dumps([section, keys, see, stage], sort_keys=True, default=str)
        if name not in self.seen:
            self.seen[name] = self._look(section, keys, see, stage)
        return self.seen[name]

    def _look(self, section: str, keys: Values, see: str, stage: str | None) -> Any:
        kind = stage or section.partition(".")[0]
        of, own = OF_KIND[kind]
        sections: Values = {of: own}
        if section in ("model", "split"):
            sections[section] = keys
        elif section == "top":
            sections |= keys
        else:
            sections[of] = {**own, **keys}
        where, made = self.load(sections)
        config = made.stages[of]
        with pytest.MonkeyPatch.context() as patch:
            called: list[Any] = []
            if see.startswith("calls:"):
                spy(patch, see.removeprefix("calls:"), called)
            captured: list[Any] = []
            if see == "page":
                return page(config)
            if see == "trainer":
                patch.setattr(loop, "train", lambda trainer, run, **_: capture(trainer, captured))
            try:
                load_object(config.run)(config)
            except Captured:
                return captured[0]
        if called:
            return called
        directory = runs.stage_dir(made.run_dir, of)
        return {str(p.relative_to(directory)): content(p, where) for p in sorted(directory.rglob("*")) if counts(p)}


def page(config: Any) -> Any:
    """What the labelling page asks one person, who always takes the first answer, and what comes of it. Chance falls
    alike each time, so that only the key makes a difference."""
    chance = random.Random(0)
    with (
        mock.patch.object(secrets, "SystemRandom", lambda: chance),
        mock.patch.object(secrets, "choice", chance.choice),
    ):
        return _page(config)


def _page(config: Any) -> Any:
    said = ""
    try:
        ui.label.run.run(config)
    except LabelsPending as wanted:
        said = str(wanted).partition("http")[0]
    store = Store(config.store_url)
    service = LabelService(store, Settings.of(config))
    told: list[Any] = [said, sorted(path.name for path in runs.stage_dir(config.run_dir, "label").iterdir())]
    for number in range(36):
        tasks = service.tasks("ann")
        if not number:
            with store.read() as db:
                leases = [at for at in db.scalars(sa.select(slot.c.expires_at)) if at]
            told.append(sorted(round((at - time.time()) / 600) for at in leases))
        if not tasks:
            break
        told.append([(task.texts, task.wants_rationale, task.practice) for task in tasks])
        try:
            service.label("ann", Judgement(f"press-of-ann-{number}", tasks[0].token, "a", note="why"))
        except BadJudgement as error:
            told.append(str(error))
            break
    with store.read() as db:
        told.append(db.scalar(sa.select(sa.func.count()).select_from(slot)))
    told.append([(one.selection, round(one.propensity, 6)) for one in store.asked().values()])
    told.append({name: found.passed for name, found in gold(store.checks(), config.gold_pass).items()})
    store.close()
    return told


def capture(trainer: Any, captured: list[Any]) -> None:
    """What a trainer stands for before its first step."""
    arguments = {key: value for key, value in trainer.args.to_dict().items() if not key.endswith("_dir")}
    model = trainer.model
    captured.append(
        {
            "arguments": json.dumps(arguments, default=str, sort_keys=True),
            "trained": {n: (list(w.shape), str(w.dtype)) for n, w in model.named_parameters() if w.requires_grad},
            "scaling": {
                n: dict(m.scaling)
                for n, m in model.named_modules()
                if hasattr(m, "scaling") and "lora" in str(type(m)).lower()
            },
            "dropout": {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)},
            "attention": model.config._attn_implementation,
            "dtype": str(next(model.parameters()).dtype),
            "weights": float(sum(w.detach().double().abs().sum() for w in model.parameters())),
            "rows": [
                {key: value for key, value in row.items() if not isinstance(value, float)}
                for row in trainer.train_dataset
            ],
            "callbacks": [type(one).__name__ for one in trainer.callback_handler.callbacks],
        }
    )
    raise Captured


def spy(patch: pytest.MonkeyPatch, name: str, called: list[Any]) -> None:
    from importlib import import_module

    owner, _, attribute = name.rpartition(".")
    try:
        target: Any = import_module(owner)
    except ImportError:
        module, _, within = owner.rpartition(".")
        target = getattr(import_module(module), within)
    real = getattr(target, attribute)

    def watched(*args: Any, **kwargs: Any) -> Any:
        plain = [value for value in args if isinstance(value, int | float | bool | Decoding)]
        called.append((plain, {k: v for k, v in kwargs.items() if isinstance(v, int | float | bool)}, len(args)))
        return real(*args, **kwargs)

    patch.setattr(target, attribute, watched)


def counts(path: Path) -> bool:
    return path.is_file() and path.suffix in (".json", ".jsonl", ".safetensors") and path.name not in ("begun.json",)


def content(path: Path, where: Path) -> Any:
    if path.suffix == ".safetensors":
        return {name: hashlib.sha256(w.numpy().tobytes()).hexdigest() for name, w in sorted(load_file(path).items())}
    text = path.read_text(encoding="utf-8").replace(str(where), "")
    if path.name == "manifest.json":
        return json.loads(text)["verdict"]
    if path.name in ("config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json"):
        return None
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return [without_times(row) for row in rows]


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not TIMES.search(key) and key not in REPEATED}
        return {key: without_times(inner) for key, inner in kept.items()}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"folder": tmp_path_factory.mktemp("keys")}


@pytest.fixture
def bench(
    shared: dict[str, Any], campaign: Callable[..., Any], jsonl: Callable[..., Path], tiny_base: Path
) -> Iterator[Bench]:
    if "bench" not in shared:
        shared["bench"] = Bench(shared["folder"], campaign, jsonl, tiny_base)
        shared["bench"].prepare()
    shared["bench"].campaign = campaign
    yield shared["bench"]


PROBED = [
    (s, key, entry) for s, (_, table) in SECTIONS.items() for key, entry in table.items() if isinstance(entry, Probe)
]


@pytest.mark.parametrize(("section", "key", "probe"), PROBED, ids=[f"{s}.{key}" for s, key, _ in PROBED])
def test_another_value_changes_something_or_is_refused(section: str, key: str, probe: Probe, bench: Bench) -> None:
    changed = {**probe.base, **probe.change}
    if probe.see == "refused":
        of = probe.stage or (section.partition(".")[0] if section.partition(".")[0] in OF_KIND else "sft")
        if probe.base:
            assert bench.look(section, probe.base, "result", of)
        with pytest.raises((TrueupError, RuntimeError), match=f"(?i){re.escape(probe.words)}"):
            bench.look(section, changed, "result", of)
        return
    before = bench.look(section, probe.base, probe.see, probe.stage)
    after = bench.look(section, changed, probe.see, probe.stage)
    assert before != after, f"{section}.{key}: {probe.change} changes nothing"


def test_a_stage_that_runs_twice_leaves_the_same(bench: Bench) -> None:
    """Else what the tests above see could be chance."""
    for section in ("sft", "sample", "label", "dpo", "ppo", "compare"):
        first, second = (bench._look(section, {}, "result", None) for _ in range(2))
        assert first == second, section
