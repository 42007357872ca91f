"""Policies as adapters on one base: they answer as the merged models do, in lockstep, and their difference is exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trueup.data.records import Candidate, Message
from trueup.errors import DataError, ModelError, RunError
from trueup.files import sha256_file
from trueup.models import loading
from trueup.models.chat import completion_text, encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.loading import load_policy, load_reward_model
from trueup.models.lockstep import Detokeniser, Engine
from trueup.models.policies import find_policies, versions
from trueup.models.sampling import Decoding, draw, sample
from trueup.models.scoring import completion_logps, score

ASKED = [Message(role="user", content="Tell me about blue things.")]
DECODING = Decoding(max_new_tokens=12, temperature=0.9, top_k=40, seed=5)
ADAPTED = ["base", "sft", "step-2", "step-10", "aligned"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, bases: Any, policies_run: Any) -> Path:
    return policies_run(tmp_path_factory.mktemp("live") / "run", bases("llama"))


@pytest.fixture(scope="module")
def engine(run_dir: Path) -> Engine:
    return Engine(run_dir)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A run to take something away from."""
    made = tmp_path / "run"
    shutil.copytree(run_dir, made)
    yield made


def answers(engine: Engine, names: list[str], decoding: Decoding = DECODING) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for step in engine.stream(names, ASKED, decoding):
        found |= step.ended
    return found


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens).logits


# ---- Which policies there are -----------------------------------------------------------------------------------


def test_the_policies_of_a_run_come_in_the_order_in_which_they_were_made(run_dir: Path) -> None:
    found = find_policies(run_dir)
    assert [policy.name for policy in found] == ADAPTED
    assert [policy.title for policy in found] == ["Base", "SFT", "Step 2", "Step 10", "Aligned (DPO)"]
    assert {policy.model for policy in found} == {None} and {policy.note for policy in found} == {None}
    assert [[path.name for path in policy.adapters] for policy in found] == [
        [],
        ["adapter"],
        ["adapter", "step-2"],
        ["adapter", "step-10"],
        ["adapter", "adapter"],
    ]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_the_aligned_policy_is_named_by_its_algorithm(copy: Path, algorithm: str) -> None:
    file = copy / "align" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "identity": {"algorithm": algorithm}}))
    assert find_policies(copy)[-1].title == f"Aligned ({algorithm.upper()})"


def test_without_an_adapter_a_policy_is_its_merged_model_and_says_why(copy: Path) -> None:
    shutil.rmtree(copy / "align" / "adapter")
    shutil.rmtree(copy / "align" / "steps")
    aligned = find_policies(copy)[-1]
    assert (aligned.model, aligned.adapters) == (copy / "align" / "model", ())
    assert aligned.note == "its own weights: no adapter was saved"
    shutil.rmtree(copy / "align")
    shutil.rmtree(copy / "sft" / "adapter")
    assert [(policy.name, policy.model) for policy in find_policies(copy)] == [
        ("base", None),
        ("sft", copy / "sft" / "model"),
    ]


def test_alignment_of_a_merged_sft_policy_is_an_adapter_on_that_one(copy: Path) -> None:
    """As after full fine-tuning, or where SFT's adapter holds new tokens, which cannot be added to a base."""
    file = copy / "sft" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "trainable_token_indices": [1, 2]}))
    _, sft, *_, aligned = find_policies(copy)
    assert sft.model == aligned.model == copy / "sft" / "model"
    assert sft.note is not None and sft.note.endswith("its adapter trains new tokens")
    assert aligned.adapters == (copy / "align" / "adapter",) and aligned.note == "an adapter on the weights of SFT"


@pytest.mark.parametrize("changed", ["sft", "align", "nothing"])
def test_no_adapter_is_put_on_a_policy_that_was_made_again_since(copy: Path, changed: str) -> None:
    def made(stage: Path, *parents: tuple[str, Path], **more: Any) -> None:
        file = stage / "manifest.json"
        seals = [{"stage": name, "manifest_sha256": sha256_file(folder / "manifest.json")} for name, folder in parents]
        file.write_text(json.dumps({**json.loads(file.read_text()), "parents": seals, **more}))

    sft, first, second = copy / "sft", copy / "align", copy / "round-2" / "align"
    shutil.copytree(first, second)
    made(first, ("sft", sft))
    made(second, ("round-1/align", first))
    before = versions(copy / "round-2")
    if changed != "nothing":
        file = copy / changed / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "seed": 7}))
    found = find_policies(copy / "round-2")
    adapters = [sft / "adapter", first / "adapter", second / "adapter"]
    expected = {
        "nothing": (None, tuple(adapters)),
        "sft": (first / "model", (second / "adapter",)),  # round 1 still is what round 2 started from
        "align": (second / "model", ()),
    }[changed]
    assert (found[-1].model, found[-1].adapters) == expected
    assert ("step-2" in [policy.name for policy in found]) == (changed != "align")
    assert (versions(copy / "round-2") == before) == (changed == "nothing")


def test_a_run_without_a_finished_sft_stage_has_no_policies(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run `trueup sft CONFIG` first"):
        find_policies(tmp_path)


def test_a_stage_that_was_run_again_is_noticed(copy: Path) -> None:
    before = versions(copy)
    assert versions(copy) == before
    file = copy / "align" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "seed": 1}), encoding="utf-8")
    assert versions(copy) != before


# ---- Adapters are the merged models -----------------------------------------------------------------------------


def test_base_and_adapters_give_the_logits_of_the_merged_models_row_by_row(engine: Engine, run_dir: Path) -> None:
    tokens = torch.tensor([encode_prompt(load_policy(run_dir / "sft" / "model", engine.config).tokenizer, ASKED)])
    expected = {
        "base": logits(loading.load_base(engine.config).model, tokens),
        "sft": logits(load_policy(run_dir / "sft" / "model", engine.config).model, tokens),
        "aligned": logits(load_policy(run_dir / "align" / "model", engine.config).model, tokens),
    }
    for names in (["base", "sft", "aligned"], ["aligned", "base"], ["sft"], ["base"]):
        [(model, _)] = engine._by_model(names)
        rows = logits(model.loaded.model, tokens.repeat(len(names), 1))
        for name, row in zip(names, rows, strict=True):
            torch.testing.assert_close(row, expected[name][0], atol=1e-4, rtol=0)
    assert not torch.allclose(expected["sft"], expected["aligned"], atol=1e-2), (
        "or there would be nothing to tell apart"
    )


def test_the_base_weights_are_never_written_to(engine: Engine, bases: Callable[[str], Path]) -> None:
    answers(engine, ADAPTED)
    engine.log_ratios(ASKED, [5, 6, 7], "aligned")
    fresh = dict(loading.load_base(engine.config).model.named_parameters())
    inside = engine._models[None].loaded.model.named_parameters()
    kept = {name.replace(".base_layer", ""): parameter for name, parameter in inside if "lora_" not in name}
    assert kept.keys() == fresh.keys() and all(torch.equal(kept[name], fresh[name]) for name in fresh)


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"init_lora_weights": "pissa"},
        {"alora_invocation_tokens": [5, 6]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
def test_a_policy_whose_adapter_is_more_than_low_rank_answers_by_its_own_weights(
    copy: Path, more: dict[str, Any]
) -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    policy = load_policy(copy / "sft" / "model", Engine(copy).config).model
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": TaskType.CAUSAL_LM, **more})
    whole = get_peft_model(policy, config)
    step = next((copy / "align" / "steps").glob("step-*"))
    for folder in (copy / "align" / "adapter", step):
        shutil.rmtree(folder)
        whole.save_pretrained(folder)
    engine = Engine(copy)
    answers(engine, ["aligned"])
    assert list(engine._models) == [copy / "align" / "model"]
    with pytest.raises(ModelError, match=rf"{step.name}: more than low-rank changes"):
        answers(engine, [step.name])


# ---- Lockstep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.9, 0.0])
def test_each_policy_says_what_it_says_when_it_is_sampled_alone(
    engine: Engine, run_dir: Path, temperature: float
) -> None:
    decoding = Decoding(max_new_tokens=12, temperature=temperature, top_k=40, seed=5)
    together = answers(engine, ADAPTED, decoding)
    assert list(engine._models) == [None], "one base model serves all of them"
    for name, folder in (("sft", "sft"), ("aligned", "align")):
        [[alone]] = sample(load_policy(run_dir / folder / "model", engine.config), [ASKED], decoding, 1, 1)
        assert together[name].token_ids == alone.token_ids and together[name].text == alone.text
        assert together[name].finished == alone.finished
        assert together[name].logp == pytest.approx(alone.logp, abs=1e-3)
    assert len({tuple(answer.token_ids) for answer in together.values()}) > 1


def test_a_policy_with_weights_of_its_own_keeps_step_with_the_others(engine: Engine, copy: Path) -> None:
    shutil.rmtree(copy / "align" / "adapter")
    mixed, expected = Engine(copy), answers(engine, ["sft", "aligned"])
    found = answers(mixed, ["sft", "aligned"])
    assert {name: one.token_ids for name, one in found.items()} == {k: v.token_ids for k, v in expected.items()}
    assert list(mixed._models) == [None, copy / "align" / "model"]
    ratios = engine.log_ratios(ASKED, found["aligned"].token_ids, "aligned")
    torch.testing.assert_close(
        mixed.log_ratios(ASKED, found["aligned"].token_ids, "aligned"), ratios, atol=1e-4, rtol=0
    )


def test_every_step_is_a_token_of_each_policy_that_has_not_ended(engine: Engine) -> None:
    decoding = Decoding(max_new_tokens=40, temperature=1.5, seed=1)
    going, texts = set(ADAPTED), dict.fromkeys(ADAPTED, "")
    ended: dict[str, Any] = {}
    for step in engine.stream(ADAPTED, ASKED, decoding):
        assert step.tokens.keys() == going
        for name, token in step.tokens.items():
            texts[name] += token.text
        going -= step.ended.keys()
        ended |= step.ended
    assert going == set() and texts == {name: answer.text for name, answer in ended.items()}
    assert len({len(answer.token_ids) for answer in ended.values()}) > 1, "they end at different steps"


def test_whoever_reads_can_stop_between_two_steps_and_ask_again(engine: Engine) -> None:
    stream: Any = engine.stream(ADAPTED, ASKED, DECODING)
    first = next(stream)
    stream.close()
    assert next(engine.stream(ADAPTED, ASKED, DECODING)) == first


def test_a_prompt_that_leaves_no_room_for_the_answer_is_refused_with_its_length(engine: Engine) -> None:
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens; with 250 new ones .* context of 256"):
        next(engine.stream(["sft"], ASKED, Decoding(max_new_tokens=250)))


def test_temperature_zero_draws_the_likeliest_token() -> None:
    assert draw(torch.tensor([[0.1, 0.3, 0.2]]), torch.tensor([0.999]), Decoding(1, temperature=0)).tolist() == [1]


# ---- Text as it comes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "llama"])
def test_text_comes_in_whole_characters_and_adds_up(bases: Callable[[str], Path], kind: str) -> None:
    tokenizer = loading.load_base_tokenizer(ModelConfig(name=str(bases(kind)), chat_template="plain"))
    text = "Say naïve 🙂👩‍👩‍👧 — «blue», 青い\n\tend"
    ids, reader = tokenizer(text, add_special_tokens=False)["input_ids"], Detokeniser(tokenizer)
    parts = [reader.add(token) for token in ids]
    assert "".join(parts) == text and not any("�" in part for part in parts) and "" in parts


def test_bytes_that_never_become_a_character_are_shown_at_the_end(bases: Callable[[str], Path]) -> None:
    tokenizer = loading.load_base_tokenizer(ModelConfig(name=str(bases("plain")), chat_template="plain"))
    first, *_ = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    reader = Detokeniser(tokenizer)
    assert [reader.add(first), reader.add(first, last=True)] == ["", tokenizer.decode([first, first])]


# ---- Where they differ ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["aligned", "step-2", "base"])
def test_log_ratios_add_up_to_the_difference_of_the_merged_models_log_probabilities(
    engine: Engine, run_dir: Path, policy: str
) -> None:
    answer = answers(engine, [policy])[policy]
    ratios = engine.log_ratios(ASKED, answer.token_ids, policy)
    assert ratios.shape == (len(answer.token_ids),) and ratios.abs().max() > 0.01
    reference = load_policy(run_dir / "sft" / "model", engine.config)
    [under_reference] = completion_logps(reference, [ASKED], [answer.token_ids])
    assert ratios.sum().item() == pytest.approx(answer.logp - under_reference, abs=1e-3)
    if policy == "aligned":
        merged = load_policy(run_dir / "align" / "model", engine.config)
        [own] = completion_logps(merged, [ASKED], [answer.token_ids])
        assert ratios.sum().item() == pytest.approx(own - under_reference, abs=1e-3)


def test_a_policy_departs_from_itself_nowhere(engine: Engine) -> None:
    assert engine.log_ratios(ASKED, [5, 6, 7], "sft").tolist() == [0.0, 0.0, 0.0]


def test_scores_are_the_reward_models_and_none_where_there_is_none(engine: Engine, run_dir: Path, copy: Path) -> None:
    reward_model = load_reward_model(run_dir / "reward" / "model", engine.config)
    told: list[str] = []
    engine.on_load = told.append
    rows = [[65, 66], [67]]
    cut = [Candidate(text=completion_text(reward_model.tokenizer, ids), token_ids=ids, finished=False) for ids in rows]
    assert engine.scores(ASKED, cut) == pytest.approx(score(reward_model, [ASKED, ASKED], rows), abs=1e-5)
    assert engine.scores(ASKED, cut[:1]) and told == ["the reward model"], "loaded once"
    shutil.rmtree(copy / "reward")
    assert Engine(copy).scores(ASKED, cut[:1]) is None


def test_loading_says_what_it_loads(copy: Path) -> None:
    shutil.rmtree(copy / "align" / "adapter")
    told: list[str] = []
    answers(Engine(copy, told.append), ["sft", "aligned"])
    assert told[0].startswith("the base model, ") and told[1:] == ["the weights of Aligned (DPO)"]
