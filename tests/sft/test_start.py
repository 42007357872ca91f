"""A campaign without SFT: the named model, or the model with an adapter, is the SFT policy of every later stage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import sft.start
from trueup import runs
from trueup.campaign import Campaign, plan, why_stale
from trueup.check import check
from trueup.cli import main
from trueup.errors import ModelError
from trueup.exporting.export import export
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.lockstep import Engine
from trueup.models.policies import find_policies, origin
from trueup.stages import load_object
from trueup.training import own_adapter
from trueup.verify import verify
from ui.pages.compare import Comparison
from ui.pages.run import run_html

Make = Callable[..., Campaign]
ONLINE = {
    "rewards": {"rubric": 1.0},
    "prompts": "prompts.jsonl",
    "rollout_batch_size": 8,
    "max_new_tokens": 6,
    "eval_prompts": 2,
}


def run_stages(made: Campaign, *stages: str) -> None:
    for stage in stages or made.needed():
        load_object(made.stages[stage].run)(made.stages[stage])


def logits(policy: loading.Loaded) -> torch.Tensor:
    with torch.inference_mode():
        return policy.model(torch.arange(5, 25).unsqueeze(0)).logits


@pytest.fixture
def untrained(campaign: Make, tmp_path: Path, bases: Callable[[str], Path]) -> Make:
    """The tiny campaign without SFT, from a model that brings its own chat template, whose files are the test's own."""

    def make(**overrides: Any) -> Campaign:
        if not (tmp_path / "instruct").exists():
            shutil.copytree(bases("chatml"), tmp_path / "instruct")
        model = {"name": str(tmp_path / "instruct"), "chat_template": "auto", **overrides.pop("model", {})}
        return campaign(tmp_path, **{"sft": "none", "model": model, **overrides})

    return make


# ---- The whole sequence -----------------------------------------------------------------------------------------


def test_every_stage_works_from_the_named_model_and_every_page_says_what_it_is(
    untrained: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = untrained()
    problems, notes = check(made)
    assert problems == [] and "sft: none: the named model is the SFT policy" in notes
    assert main(["status", str(made.source)]) == 0
    assert "sft      run    not run yet; sft: none: the named model is the SFT policy" in capsys.readouterr().out
    run_stages(made)
    assert {step.action for step in plan(made)} == {"keep"} and verify(made.run_dir).problems == []

    # Said once, on each page that somebody reads
    said = "The SFT policy is the named model itself, instruct, as it came: nothing was trained before the alignment"
    assert (origin(made.run_dir) or "").startswith(said)
    report = (made.run_dir / "compare" / "report.html").read_text(encoding="utf-8")
    assert report.count(said) == 2  # under the verdict, and among the findings
    assert said in run_html(made.run_dir, []) and said in Comparison(made.run_dir / "compare").summary_html()

    # Nobody sees one model under two names
    assert [policy.name for policy in find_policies(made.run_dir) if not policy.name.startswith("step")] == [
        "sft",
        "aligned",
    ]
    answers = Engine(made.run_dir, trust=True)
    assert {policy.model for policy in answers.policies.values()} == {made.run_dir / "sft" / "model"}

    # Out of the run
    assert "a language model that nothing was trained in here" in export(made.run_dir, "sft", tmp_path / "policy")
    card = (tmp_path / "policy" / "README.md").read_text(encoding="utf-8")
    assert "nothing was trained; verdict pass" in card
    export(made.run_dir, "policy", tmp_path / "aligned")
    named, exported = (
        loading.load_base(ModelConfig(name=str(path), device="cpu"))
        for path in (made.config.model.name, tmp_path / "policy")
    )
    torch.testing.assert_close(logits(exported), logits(named), rtol=0, atol=0)

    # PPO, GRPO and RLOO from the same policy
    for algorithm in ("ppo", "grpo", "rloo"):
        run_stages(untrained(align={"algorithm": algorithm, "max_steps": 2, **ONLINE}), "align")
        assert runs.open_stage(made.run_dir, "align").manifest.identity["algorithm"] == algorithm


# ---- The policy's files -----------------------------------------------------------------------------------------


def test_the_weights_are_the_models_own_files_and_what_is_read_is_what_a_training_would_start_from(
    untrained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = untrained()
    source = Path(made.config.model.name) / "model.safetensors"
    mode = source.stat().st_mode
    run_stages(made, "sft")
    model = made.run_dir / "sft" / "model"
    assert os.path.samefile(model / "model.safetensors", source) and source.stat().st_mode == mode
    base, policy = loading.load_base(made.config.model), loading.load_policy(model, made.config.model)
    torch.testing.assert_close(logits(policy), logits(base), rtol=0, atol=0)
    assert policy.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert policy.tokenizer.chat_template == base.tokenizer.chat_template
    for name in ("eos_token_id", "pad_token_id"):
        models = base.model, policy.model
        values = [getattr(part, name) for model in models for part in (model.config, model.generation_config)]
        assert len(set(map(str, values))) == 1, name
    assert json.loads((model.parent / "report.json").read_text())["weights"] == "linked"

    def refuse(*_: Any) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    run_stages(made, "sft")
    assert not os.path.samefile(model / "model.safetensors", source)
    assert (model / "model.safetensors").read_bytes() == source.read_bytes()
    assert json.loads((model.parent / "report.json").read_text())["weights"] == "copied"


def as_gguf(base: Path, folder: Path) -> Path:
    return write_gguf(base, folder / "base.gguf")


def with_more_tokens(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder / "more")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(folder / "more")
    return folder / "more"


@pytest.mark.parametrize("put", [as_gguf, with_more_tokens])
def test_weights_that_are_no_safetensors_or_have_to_grow_are_written_anew(
    campaign: Make, tmp_path: Path, bases: Callable[[str], Path], put: Callable[[Path, Path], Path]
) -> None:
    made = campaign(tmp_path, sft="none", model={"name": str(put(bases("chatml"), tmp_path)), "chat_template": "auto"})
    run_stages(made, "sft")
    stage = runs.open_stage(made.run_dir, "sft")
    base, policy = loading.load_base(made.config.model), loading.load_policy(stage.dir / "model", made.config.model)
    torch.testing.assert_close(logits(policy), logits(base), rtol=0, atol=0)
    assert len(policy.tokenizer) <= policy.model.get_input_embeddings().num_embeddings
    assert json.loads((stage.dir / "report.json").read_text())["weights"] == "saved"


def test_a_model_that_was_never_taught_to_answer_is_a_warning(campaign: Make, tmp_path: Path) -> None:
    made = campaign(tmp_path, sft=None, model={"chat_template": "auto"})
    run_stages(made, "sft")
    findings = runs.open_stage(made.run_dir, "sft").manifest.verdict.findings
    assert [(one.level, one.code) for one in findings] == [("info", "not_trained"), ("warn", "no_chat_template")]


def test_only_what_changes_the_policy_makes_it_stale(untrained: Make) -> None:
    made = untrained()
    run_stages(made, "sft")
    for unchanged in (untrained(seed=7), untrained(split={"heldout_fraction": 0.4}), untrained(sft=None)):
        assert why_stale(unchanged.stages["sft"]) is None
    trained = untrained(sft={"data": ["demonstrations.jsonl"], "learning_rate": 1e-3})
    assert why_stale(trained.stages["sft"]) == "none: True -> None"
    template = Path(made.config.model.name) / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    assert why_stale(made.stages["sft"]) == "model.name: chat_template.jinja has changed"
    run_stages(made, "sft")
    weights = Path(made.config.model.name) / "model.safetensors"
    save_file(
        {name: weight + 0.1 for name, weight in load_file(weights).items()}, weights, {"format": "pt"}
    )  # in place
    assert why_stale(made.stages["sft"]) == "model.name: model.safetensors has changed"
    run_stages(made, "sft")
    assert weights.is_file() and verify(made.run_dir).problems == []


def test_an_interruption_while_the_files_are_taken_leaves_nothing_that_stays(
    untrained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = untrained()
    with monkeypatch.context() as patch:

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(sft.start, "save_around", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stages(made, "sft")
    assert why_stale(made.stages["sft"]) == "unfinished" and plan(made)[0].action == "resume"
    run_stages(made, "sft")
    assert why_stale(made.stages["sft"]) is None and verify(made.run_dir).problems == []


# ---- An adapter over the model ----------------------------------------------------------------------------------


@pytest.fixture
def adapted(campaign: Make, tmp_path: Path, policies_run: Callable[..., Path], tiny_base: Path) -> Make:
    """The tiny campaign without SFT, over a model with an adapter that lies beside the campaign file."""
    adapter = policies_run(tmp_path / "elsewhere", tiny_base) / "sft" / "adapter"
    shutil.copytree(adapter, tmp_path / "adapter")

    def make(**overrides: Any) -> Campaign:
        return campaign(tmp_path, **{"sft": "none", "model": {"adapter": "adapter"}, **overrides})

    return make


def test_the_model_with_its_adapter_is_the_policy_and_the_model_below_is_the_base(
    adapted: Make, tmp_path: Path
) -> None:
    made = adapted()
    problems, notes = check(made)
    assert problems == [] and "sft: none: the named model with its adapter is the SFT policy" in notes
    run_stages(made, "sft")
    stage = runs.open_stage(made.run_dir, "sft")
    trained = loading.load_policy(tmp_path / "elsewhere" / "sft" / "model", made.config.model)
    policy = loading.load_policy(stage.dir / "model", made.config.model)
    torch.testing.assert_close(logits(policy), logits(trained), rtol=0, atol=1e-4)
    base, sft_policy = find_policies(made.run_dir)
    assert (base.name, base.model, base.adapters) == ("base", None, ())
    assert (sft_policy.model, sft_policy.adapters) == (None, (stage.dir / "adapter",))
    assert "with the adapter adapter" in (origin(made.run_dir) or "") and verify(made.run_dir).problems == []
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(settings.read_text() + "\n")
    assert why_stale(made.stages["sft"]) == "model.adapter: adapter_config.json has changed"


def change_settings(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def set_key(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_settings(folder, **values)


def of_another_width(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.cat([weight, weight]) for name, weight in load_file(file).items()}, file)
    change_settings(folder, base_model_name_or_path="acme/wide")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_another_width, "adapter: trained over acme/wide, does not fit model.name: {base}: base_model."),
        (set_key(target_modules=["qkv"]), "does not fit model.name: {base}: Target modules"),
        (set_key(peft_type="IA3"), "adapter: is of PEFT's kind IA3; only LORA is merged into the weights"),
        (set_key(lora_bias=True), "adapter: adapter_config.json has lora_bias: True: such an adapter cannot be merged"),
        (set_key(alora_invocation_tokens=[5, 6]), "has alora_invocation_tokens: [5, 6]: such an adapter cannot"),
        (set_key(init_lora_weights="pissa"), "has init_lora_weights: pissa: such an adapter cannot be merged"),
        (set_key(task_type="SEQ_CLS"), "adapter: is for SEQ_CLS; a language model's, CAUSAL_LM, is wanted"),
        (
            lambda folder: (folder / "adapter_model.safetensors").unlink(),
            "adapter: has no adapter_model.safetensors, which PEFT's save_pretrained writes",
        ),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"cut"),
            ": adapter_model.safetensors is not a whole safetensors file (",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{"),
            "adapter_config.json cannot be read (",
        ),
        (shutil.rmtree, "adapter: no such directory"),
    ],
)
def test_an_adapter_that_cannot_be_put_over_the_model_is_refused_before_and_when_it_is_read(
    adapted: Make, tmp_path: Path, tiny_base: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(tmp_path / "adapter")
    made = adapted(model={"adapter": str(tmp_path / "adapter")})
    (problem,) = check(made)[0]
    assert problem.startswith(f"model.adapter: {tmp_path}/adapter") and said.format(base=tiny_base) in problem
    with pytest.raises(ModelError) as caught:
        run_stages(made, "sft")
    assert str(caught.value) == problem
    assert not (made.run_dir / "sft" / "manifest.json").exists()


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_embeddings_that_are_the_output_head_too_is_refused(
    tmp_path: Path, module: str, tied: bool
) -> None:
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    settings = LlamaConfig(**sizes, num_hidden_layers=1, tie_word_embeddings=tied)
    adapted = get_peft_model(LlamaForCausalLM(settings), LoraConfig(r=2, target_modules=[module]))
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    config = ModelConfig(adapter=str(tmp_path))
    with pytest.raises(ModelError, match="the output head's weights too") if tied else nullcontext():
        own_adapter.require_fitting(config, own_adapter.read_adapter(config), LlamaForCausalLM(settings))


def test_an_adapter_as_model_name_says_which_key_it_belongs_to(adapted: Make, tmp_path: Path) -> None:
    problems = check(adapted(model={"name": str(tmp_path / "adapter"), "adapter": None}))[0]
    assert problems == [
        f"model.name: {tmp_path}/adapter: is an adapter; name it as model.adapter, and the model below it as model.name"
    ]


# ---- Preferences only -------------------------------------------------------------------------------------------


def test_preferences_alone_are_a_campaign(campaign: Make, tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(24)]
    jsonl(tmp_path / "preferences.jsonl", rows)
    only: dict[str, Any] = {
        "sft": None,
        "sample": {"prompts": None},
        "label": {"source": "import", "path": "preferences.jsonl"},
    }
    made = campaign(tmp_path, **only)
    sample = made.stages["sample"]
    assert (sample.prompts, sample.only) == (tmp_path / "preferences.jsonl", "heldout")  # type: ignore[attr-defined]
    assert check(made)[0] == []
    run_stages(made)
    report = json.loads((made.run_dir / "candidates" / "report.json").read_text())
    assert 0 < report["prompts"] == report["heldout"] < 24
    assert runs.open_stage(made.run_dir, "compare").manifest.verdict.findings

    # The reward model that they taught pays PPO
    online = {**ONLINE, "algorithm": "ppo", "max_steps": 2, "rewards": {"reward_model": 1.0}}
    run_stages(campaign(tmp_path, **only, align=online), "align")
