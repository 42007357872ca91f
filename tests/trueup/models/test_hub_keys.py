"""Each key that takes a hub id, against the small hub: one commit for a whole run, and the same sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from hub import Commands, Files, Hub, files_of
from pydantic import BaseModel

from trueup import runs
from trueup.campaign import Campaign, CampaignConfig, load_campaign
from trueup.models.config import ModelName
from trueup.stages import STAGES, load_object
from trueup.verify import verify

IDS = {
    "model.name": "owner/base",
    "model.adapter": "owner/lora",
    "label.reward_model": "owner/scorer",
    "reward.base.name": "owner/judge",
}
REVISIONS = {
    "model.name": "model.revision",
    "model.adapter": "model.adapter_revision",
    "label.reward_model": "label.reward_model_revision",
    "reward.base.name": "reward.base.revision",
}


@pytest.fixture
def hub(bases: Callable[[str], Path]) -> Hub:
    """A hub with a model for each key."""
    hub, files = Hub(), files_of(bases("chatml"))
    settings = json.loads(files["config.json"])
    settings |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
    hub.model(IDS["model.name"], files)
    hub.model(IDS["model.adapter"], {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    hub.model(IDS["label.reward_model"], {**files, "config.json": json.dumps(settings).encode()})
    hub.model(IDS["reward.base.name"], files)
    return hub


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Iterator[Commands]:
    with hub.served() as address:
        commands = Commands(tmp_path / "machine", address)
        yield commands
        commands.end()


@pytest.fixture
def made(campaign: Callable[..., Campaign], tmp_path: Path) -> Campaign:
    """A campaign with a hub id in each key that takes one."""
    return campaign(
        tmp_path,
        model={"name": IDS["model.name"], "adapter": IDS["model.adapter"], "chat_template": "auto"},
        sft="none",
        label={"source": "reward_model", "reward_model": IDS["label.reward_model"]},
        reward={"base": {"name": IDS["reward.base.name"]}},
    )


def at(made: Campaign) -> dict[str, str | None]:
    """The revision in each key, as the stages have it."""
    campaign = load_campaign(made.source)
    hub_ids = [hub_id for stage in campaign.stages.values() for hub_id in stage.hub_ids()]
    return {hub_id.key: hub_id.revision for hub_id in hub_ids}


def with_a_model(schema: type[BaseModel], prefix: str) -> Iterator[str]:
    """The keys of a section and those within it whose value may be a hub id."""
    for name, field in schema.model_fields.items():
        parts = [field.annotation, *get_args(field.annotation)]
        metadata = [*field.metadata, *(each for part in parts for each in getattr(part, "__metadata__", ()))]
        if ModelName.__metadata__[0] in metadata:  # type: ignore[attr-defined]
            yield f"{prefix}{name}"
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel) and name not in ("model", "split"):
                yield from with_a_model(part, f"{prefix}{name}.")


def test_these_are_all_keys_that_take_a_hub_id() -> None:
    keys = set(with_a_model(CampaignConfig.model_fields["model"].annotation, "model."))  # type: ignore[arg-type]
    for stage, described in STAGES.items():
        schema = load_object(described.config)
        for one in schema.values() if isinstance(schema, dict) else [schema]:
            keys |= set(with_a_model(one, f"{stage}."))
    assert keys == {*IDS, "reward.base.adapter"}, "an adapter of reward.base is refused, whatever its name"


def test_each_is_settled_on_a_commit_for_the_whole_run_and_says_where_its_branch_goes(
    hub: Hub, command: Commands, made: Campaign
) -> None:
    first = {key: hub.models[name].branches["main"] for key, name in IDS.items()}
    code, out, err = command("run", made.source, "--plan")
    assert (code, err, "moved" in out) == (0, "", False)
    assert not (made.run_dir / "hub.json").exists(), "a plan leaves the run as it is"
    assert not any("/resolve/" in request for request in hub.asked), "and fetches nothing"
    assert at(made) == dict.fromkeys(IDS)
    command("begin", made.source)
    assert json.loads((made.run_dir / "hub.json").read_text()) == {f"{IDS[key]}@main": first[key] for key in IDS}
    assert at(made) == first

    for name in IDS.values():
        hub.models[name].push({**hub.models[name].commits[hub.models[name].branches["main"]], "README.md": b"new"})
    out = command("run", made.source, "--plan")[1]
    assert out.count("and no file that counts has changed") == len(IDS)
    for key, name in IDS.items():
        repository = hub.models[name]
        newer = repository.push({**repository.commits[first[key]], "special_tokens_map.json": b"{}"})
        out = command("run", made.source, "--plan")[1]
        assert f"{key}: {name}: main has moved from {first[key][:7]} to {newer[:7]} " in out
        assert f" to {newer[:7]} ({REVISIONS[key]}: {first[key]} keeps the old files)" in out
    kept = [part for key in IDS for part in ("--set", f"{REVISIONS[key]}={first[key]}")]
    assert "moved" not in command("run", made.source, "--plan", *kept)[1]
    hub.is_down = True
    out = command("run", made.source, "--plan")[1]
    for key, name in IDS.items():
        down = f"{hub.address} answers 503 Service Unavailable"
        assert f"{key}: {name}: {down}; the run stays at commit {first[key][:7]}" in out
    assert at(made) == first


def test_each_that_cannot_be_had_is_refused_before_anything_is_fetched(
    hub: Hub, command: Commands, made: Campaign
) -> None:
    hub.model("owner/closed", {"README.md": b"x"}, is_gated=True)
    hub.model("owner/pictures", {"README.md": b"x"})
    hub.model("owner/pickled", {"adapter_config.json": b"{}", "adapter_model.bin": b"x"})

    def error(key: str, value: str) -> str:
        code, out, err = command("run", made.source, "--set", f"{key}={value}")
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    for key, name in IDS.items():
        unknown = error(key, f"{name}s")
        assert unknown.startswith(f"{key}: {name}s: {hub.address} has no such model, or it is private: ")
        assert unknown.endswith(f"; did you mean {name}?\n")
        assert error(REVISIONS[key], "mian").startswith(f"{REVISIONS[key]}: {name} has no branch, tag or commit 'mian'")
        assert error(key, "owner/pictures").startswith(f"{key}: owner/pictures: holds no ")
    assert error("model.adapter", "owner/base").startswith("model.adapter: owner/base: holds a model and no adapter")
    assert "holds its weights as adapter_model.bin and not" in error("model.adapter", "owner/pickled")
    assert "holds an adapter and no model" in error("reward.base.name", "owner/lora")
    hub.is_down = True
    for key, name in IDS.items():
        made.source.write_text(made.source.read_text().replace(name, f"{name}-2"))
        assert error(key, f"{name}-2")
    assert not any("/resolve/" in request for request in hub.asked)


def lora(base: Path, folder: Path, r: int = 4) -> Files:
    """The files of an adapter over a model."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=r, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
    get_peft_model(model, settings).save_pretrained(folder)
    return files_of(folder)


def test_a_check_reads_each_at_the_commit_of_the_run_and_without_the_weights_of_models(
    hub: Hub, command: Commands, made: Campaign, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    hub.models[IDS["model.adapter"]].push(lora(bases("chatml"), tmp_path / "lora"))
    code, out, err = command("check", made.source)
    assert (code, err) == (0, ""), out
    assert "ok       model: LlamaForCausalLM (llama), " in out and out.endswith(": no problems\n")
    assert out.count(": the first run fetches its weights (") == len(IDS) - 1
    fetched = [request for request in hub.asked if request.startswith("GET") and request.endswith(".safetensors")]
    (weights,) = fetched
    assert "adapter_model" in weights, "an adapter is fetched whole, since it must fit the model"
    assert not made.run_dir.exists(), "a check leaves the run as it is"

    command("begin", made.source)
    for name in IDS.values():
        hub.models[name].push({"README.md": b"nothing else is left"})
    hub.is_down = True
    code, out, err = command("check", made.source)
    assert (code, err) == (0, "") and out.count("; the run stays at commit ") == len(IDS)
    hub.is_down = False
    code, out, err = command("check", made.source)
    problems = [line.removeprefix("problem  ") for line in out.splitlines() if line.startswith("problem")]
    assert code == 1 and len(problems) == len(IDS), "each is said once"
    assert [line.partition(": ")[0] for line in problems] == [*IDS]


def test_a_campaign_runs_at_one_commit_that_stands_in_its_manifests_and_on_the_card_of_an_export(
    hub: Hub, command: Commands, campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    name = IDS["model.name"]
    made = campaign(tmp_path, model={"name": name, "chat_template": "auto"}, sft={"max_steps": 1})
    commit = hub.models[name].branches["main"]
    code, out, err = command("run", made.source, "--until", "sft")
    assert code == 0, out + err
    manifest = runs.open_stage(made.run_dir, "sft").manifest
    assert manifest.identity["model"]["revision"] == commit and manifest.contents["model.name"] == {"commit": commit}
    assert sum(request.startswith("GET") and "safetensors" in request for request in hub.asked) == 1
    adapter = json.loads((made.run_dir / "sft/adapter/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == name, "the name, and not a folder of this machine"
    assert verify(made.run_dir).problems == []

    newer = hub.models[name].push({**hub.models[name].commits[commit], "tokenizer_config.json": b"{}"})
    hub.is_down = True
    assert "sft      keep" in command("run", made.source, "--until", "sft", "--plan")[1]
    hub.is_down = False
    assert f"sft      run    model.revision: '{commit}' -> '{newer}'" in command("run", made.source, "--plan")[1]
    assert "sft      keep" in command("status", made.source)[1], "a plan leaves the run as it is"
    assert command("export", made.run_dir, "sft", tmp_path / "export")[0] == 0
    assert f"- Base model: {name} at commit {commit}. Its licence" in (tmp_path / "export/README.md").read_text()
