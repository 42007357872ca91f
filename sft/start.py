"""No SFT: the model that the campaign names is the SFT policy, and nothing is trained.

Reads   the model (`model.name`), and the adapter over it (`model.adapter`), if there is one.
Writes  sft/: model/ (the model's own weights, as hard links or copies; with an adapter, merged), adapter/ (that one,
        relative to the model), report.json, manifest.json.

Every later stage finds the SFT policy where a training would leave it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sft.config import StartConfig
from sft.report import StartReport
from trueup import runs
from trueup.console import say
from trueup.data.records import Message
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.placement import place
from trueup.models.policies import ADAPTER, NOT_TRAINED
from trueup.models.sources import low_rank
from trueup.models.sources.files import weight_files
from trueup.models.sources.settings import read_settings, source_of
from trueup.models.templates.ends import choice_of
from trueup.runs import StageRun

PROBES = ("Say hello.", "Why is the sky blue?", "Write a short poem about rain.", "What is 12 times 7?")
"""Prompts on which the model with its adapter is compared with the merged weights."""


Weights = Literal["linked", "copied", "saved", "merged"]
WEIGHTS: dict[Weights, str] = {
    "linked": "they are the model's own files, by hard links, and take no room",
    "copied": "copies of the model's own files, which no hard link can reach from the run",
    "saved": "written anew as safetensors",
    "merged": "written anew with the adapter merged into them",
}


def run(config: StartConfig) -> Path:
    stage = runs.begin(config)
    stage.trained_on([])  # the comparison asks every stage before it
    directory = stage.dir / "model"
    for folder in (directory, stage.dir / ADAPTER):  # an interrupted run may have left half of them
        shutil.rmtree(folder, ignore_errors=True)

    # 1. The policy's weights -----------------------------------------------------------------------------------------
    weights: Weights
    if config.model.adapter:
        policy, weights = with_adapter(config.model, stage), "merged"
        loading.save(policy, directory)
    elif came := as_it_came(config.model):
        policy, weights = came[0], take(came[1], directory)
        save_around(policy, config.model, directory)
    else:
        policy, weights = loading.load_base(config.model), "saved"
        loading.save(policy, directory)
    say(f"{'weights':<12} {weights}: {WEIGHTS[weights]}")

    # 2. What to know about it ----------------------------------------------------------------------------------------
    stage.find("info", NOT_TRAINED, what_it_is(config.model))
    if config.model.chat_template == "auto" and not loading.brings_template(config.model):
        stage.find(
            "warn",
            "no_chat_template",
            "the model brings no chat template, so it was hardly taught to answer and to stop, and nothing teaches it "
            "here: give demonstrations (sft.data), or the template that it was taught (model.chat_template)",
        )

    # 3. Report and save ----------------------------------------------------------------------------------------------
    stage.write_report(
        StartReport(
            model=config.model.name,
            adapter=config.model.adapter,
            weights=weights,
            parameters=policy.model.num_parameters(),
        )
    )
    stage.facts["chat_template"] = choice_of(policy.tokenizer)
    stage.facts.update(place(config.model).facts, base_model=config.model.name, trained_parameters=0)
    return stage.finish()


def what_it_is(model: ModelConfig) -> str:
    """A sentence on the policy, for the pages and for whoever gets the model."""
    name = _short(model.name)
    policy = f"{name} with the adapter {_short(model.adapter)}" if model.adapter else f"{name}, as it came"
    return f"The SFT policy is the named model itself, {policy}: nothing was trained before the alignment (sft: none)."


def _short(name: str) -> str:
    return Path(name).name if name.startswith("/") else name


def as_it_came(model: ModelConfig) -> tuple[loading.Loaded, list[Path]] | None:
    """The model without memory, and the files of its weights; None if these must be read and written anew: those of a
    GGUF file, or of a vocabulary that has to grow."""
    source = source_of(model)
    if source.endswith(".gguf"):
        return None
    policy = loading.base_without_memory(model)
    files = weight_files(Path(source))
    grows = len(policy.tokenizer) > policy.model.get_input_embeddings().num_embeddings
    return (policy, files) if files and not grows else None


def take(files: Sequence[Path], directory: Path) -> Weights:
    """Put the files into the directory as hard links, which take no room, or as copies on another file system."""
    directory.mkdir(parents=True)
    sources = {file.name: file.resolve() for file in files}  # in the hub's cache each is a link itself
    try:
        for name, file in sources.items():
            os.link(file, directory / name)
        return "linked"
    except OSError:
        for name, file in sources.items():
            (directory / name).unlink(missing_ok=True)
            shutil.copyfile(file, directory / name)
        return "copied"


def save_around(policy: loading.Loaded, model: ModelConfig, directory: Path) -> None:
    """Write all that a saved policy has beside its weights: settings, tokenizer, chat template, and the model's own
    code if that may run."""
    source = source_of(model)
    settings = read_settings(source, model)
    for one, agreed in (
        (settings, policy.model.config),
        (settings.get_text_config(), policy.model.config.get_text_config()),
    ):
        one.pad_token_id, one.eos_token_id = agreed.pad_token_id, agreed.eos_token_id
    settings.save_pretrained(directory)
    if policy.model.can_generate():
        policy.model.generation_config.to_json_file(directory / "generation_config.json")
    policy.tokenizer.save_pretrained(directory)
    if model.trust_remote_code:
        for code in Path(source).glob("*.py"):
            shutil.copyfile(code, directory / code.name)


def with_adapter(model: ModelConfig, stage: StageRun) -> loading.Loaded:
    """The model with the adapter merged into it; the adapter is copied beside it."""
    from trueup.training import own_adapter, trial  # PEFT takes seconds, which whoever waits for a first pair would see
    from trueup.training.merging import merged

    settings = read_settings(source_of(model, weights=False), model)
    shapes = trial.Stage(model, settings, loading.load_base_tokenizer(model)).model(scores=False)
    adapter = own_adapter.read_adapter(model)
    own_adapter.require_fitting(model, adapter, shapes.model)
    if sentence := own_adapter.of_another(model, adapter):
        stage.find("warn", "adapter_of_another", sentence)
    policy = loading.load_base(model)
    (stage.dir / ADAPTER).mkdir()
    for name in (low_rank.SETTINGS, low_rank.WEIGHTS):
        shutil.copyfile(adapter.folder / name, stage.dir / ADAPTER / name)
    probes = [encode_prompt(policy.tokenizer, [Message(role="user", content=text)]) for text in PROBES]
    policy.model = merged(own_adapter.load_adapter(adapter, policy), stage, probes)
    return policy
