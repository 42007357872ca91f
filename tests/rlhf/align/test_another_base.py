"""A reward model whose base, tokenizer and template are not the policy's: wherever it scores, it scores the text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import another_base
import pytest
import torch
from another_base import Plain
from tokenizers.normalizers import Replace
from transformers import AutoTokenizer

import reward.train
import rlhf.align.preferences.dpo
import rlhf.compare.run
import ui.label.run
from rlhf.align.config.online import PPOConfig
from rlhf.align.ppo import memory
from rlhf.align.ppo.roles import SharedBase
from rlhf.align.ppo.stage import cast_roles, scores
from rlhf.align.rewards import refuse_unfit, scorer
from trueup import runs
from trueup.artifacts.reports import Normalisation
from trueup.data.records import Candidate, CandidateSet, Message, Preference, read_rows
from trueup.errors import DataError
from trueup.models import loading
from trueup.models.chat import encode_completion
from trueup.models.lockstep import Engine
from trueup.models.scoring import conversion, score, score_answers
from trueup.stages import load_object

UNITS = Normalisation(mean=0.0, std=1.0)
TINY = {
    "rollout_batch_size": 8,
    "train_batch_size": 8,
    "num_generations": 2,
    "max_new_tokens": 8,
    "max_steps": 2,
    "eval_prompts": 2,
    "keep_steps": 1,
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "dpo": {"algorithm": "dpo"},
    "ppo": {"algorithm": "ppo", **TINY, "num_ppo_epochs": 1},
    "ppo, every weight": {"algorithm": "ppo", **TINY, "num_ppo_epochs": 1, "full_finetuning": True},
    "grpo": {"algorithm": "grpo", **TINY},
    "rloo": {"algorithm": "rloo", **TINY},
}
WARMER = """
def score(prompt, text, finished):
    return float(sum(text.count(letter) for letter in "aeiou"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("another")


@pytest.fixture
def made(
    campaign: Callable[..., Any], bases: Callable[[str], Path], folder: Path, tmp_path: Path
) -> Callable[..., Any]:
    """A campaign up to its reward model, which is trained from another base; made once, and copied.

    Online algorithms have no held-out prompts: then the report card is empty, and its verdict is not fail.
    """

    def make(name: str = "dpo", **align: Any) -> Any:
        (tmp_path / "mine.py").write_text(WARMER)
        kept = folder / ("compared" if name == "dpo" else "online")
        if not (folder / "base").exists():
            another_base.language_model(folder / "base", bases("llama"))
        found = campaign(
            tmp_path,
            label={"source": "simulated", "rubric": "mine.py:score"},
            reward={"base": {"name": str(folder / "base"), "device": "cpu"}, "max_steps": 12},
            align={**ALGORITHMS[name], **align},
            split={"heldout_fraction": 0.3 if name == "dpo" else 0.0},
            compare={"judges": ["reward_model", "rubric"], "greedy": False},
        )
        if not kept.exists():
            stage = runs.begin(found.stages["sft"])
            loading.save(loading.load_base(found.config.model), stage.dir / "model")
            stage.trained_on([])
            stage.finish()
            load_object(found.stages["sample"].run)(found.stages["sample"])
            ui.label.run.run(found.stages["label"])
            reward.train.run(found.stages["reward"])
            shutil.copytree(found.run_dir, kept)
        elif not found.run_dir.exists():
            shutil.copytree(kept, found.run_dir)
        return found

    return make


def candidates(campaign: Any) -> list[tuple[list[Message], Candidate]]:
    rows = read_rows(runs.stage_dir(campaign.run_dir, "sample") / "candidates.jsonl", CandidateSet)
    return [(row.prompt, candidate) for row in rows for candidate in row.candidates]


def plain(campaign: Any) -> Plain:
    return Plain(runs.stage_dir(campaign.run_dir, "reward") / "model")


# ---- The text is what is scored ---------------------------------------------------------------------------------


def test_an_answer_has_the_score_of_its_rendered_text_whichever_tokens_were_sampled(made: Any) -> None:
    campaign = made()
    asked = candidates(campaign)[:12]
    asked += [(prompt, Candidate(text=one.text, token_ids=[], finished=True)) for prompt, one in asked]
    prompts, answers = [prompt for prompt, _ in asked], [one for _, one in asked]
    model = loading.load_reward_model(Path(plain(campaign).tokenizer.name_or_path), campaign.config.model)
    by_hand = plain(campaign)
    direct = [by_hand.score(prompt, one.text, one.finished) for prompt, one in asked]
    assert score_answers(model, prompts, answers) == pytest.approx(direct, abs=1e-5)
    in_units = scorer(model, Normalisation(mean=1.0, std=2.0))(prompts, answers).rewards
    assert in_units == pytest.approx([(value - 1) / 2 for value in direct], abs=1e-5)
    # The policy's own ids mean other text to it, or none.
    wrong = score(model, prompts[:12], [one.token_ids for one in answers[:12]])
    assert wrong != pytest.approx(direct[:12], abs=1e-2)


def test_an_answer_that_the_reward_model_has_no_room_for_has_no_score_and_is_reported_once(
    made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = made()
    model = loading.load_reward_model(Path(plain(campaign).tokenizer.name_or_path), campaign.config.model)
    prompt = [Message(role="user", content="Say red.")]
    text = " ".join(["red"] * 300)
    long = Candidate(text=text, token_ids=encode_completion(model.tokenizer, text), finished=True)
    short = Candidate(text="It is red.", token_ids=[], finished=True)
    capsys.readouterr()
    by = scorer(model, UNITS)
    assert [
        value is None for value in (*by([prompt] * 3, [long, short, long]).rewards, *by([prompt], [long]).rewards)
    ] == [
        *(True, False, True),
        True,
    ]
    printed = capsys.readouterr().out
    assert printed.count("an answer has no score") == 1 and "whose context has 256" in printed


REFUSING = (
    "{% if 'Please' in messages[0]['content'] %}{{ raise_exception('no pleading') }}{% endif %}" + another_base.TEMPLATE
)


@pytest.mark.parametrize(
    ("kind", "prompt", "text"),
    [
        ("too long", "Say red.", "red " * 300),
        ("a letter that its tokenizer does not know", "Say red.", "Über"),
        ("a prompt that its template refuses", "Please say red.", "It is red."),
    ],
)
def test_an_answer_that_the_reward_model_cannot_read_leaves_the_scores_of_all_others(
    made: Any, kind: str, prompt: str, text: str
) -> None:
    campaign = made()
    model = loading.load_reward_model(Path(plain(campaign).tokenizer.name_or_path), campaign.config.model)
    if "template" in kind:
        model.tokenizer.chat_template = REFUSING
    if "letter" in kind:
        model.tokenizer.backend_tokenizer.normalizer = Replace("Ü", "U")
    prompts = [[Message(role="user", content=content)] for content in ("Say red.", prompt, "Say blue.")]
    said = [Candidate(text=one, token_ids=[], finished=True) for one in ("It is red.", text, "It is blue.")]
    counts: list[int] = []
    first, unread, last = score_answers(model, prompts, said, on_progress=counts.append)
    assert unread is None and counts[-1] == 3, "it is counted as read, so that the bar ends"
    assert [first, last] == pytest.approx(score_answers(model, prompts[::2], said[::2]), abs=1e-5)


@pytest.mark.parametrize("kind", ["plain", "llama", "chatml"])
def test_the_conversion_says_what_differs_and_a_pad_token_of_its_own_is_no_difference(
    bases: Callable[[str], Path], campaign: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    config = campaign(tmp_path, model={"name": str(bases(kind)), "chat_template": "auto"}).config.model
    policy = loading.load_base(config)
    loading.save(policy, tmp_path / "sft")
    reads, writes = loading.new_reward_model(tmp_path / "sft", config).tokenizer, policy.tokenizer
    assert reads.pad_token != writes.pad_token and conversion(reads, writes) is None
    assert conversion(loading.read_tokenizer(tmp_path / "sft", config), writes) is None
    template, end = reads.chat_template, repr(reads.eos_token)
    reads.chat_template = another_base.TEMPLATE
    assert conversion(reads, writes) == (
        "the reward model's chat template differs from the policy's: it reads the text of every prompt and answer in "
        f"its own template and tokens, and a finished answer ends with its end of turn, {end}"
    )
    reads.chat_template = template
    reads.add_tokens(["red things"])
    told = conversion(reads, writes)
    assert told and told.startswith("the reward model's tokenizer differs from the policy's: it reads the text"), told
    other = AutoTokenizer.from_pretrained(bases("llama" if kind != "llama" else "chatml"))
    other.chat_template = another_base.TEMPLATE
    told = conversion(other, writes)
    assert told and told.startswith("the reward model's tokenizer and chat template differ from the policy's: it reads")


# ---- Where it scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "dpo"])
def test_an_online_algorithm_is_paid_for_the_text_by_a_model_of_another_base_and_says_what_was_done(
    made: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    campaign = made(name)
    capsys.readouterr()
    load_object(campaign.stages["align"].run)(campaign.stages["align"])
    printed = capsys.readouterr().out
    sentence = "the reward model's tokenizer and chat template differ from the policy's"
    assert printed.count(sentence) == 1
    stage = runs.open_stage(campaign.run_dir, "align")
    (finding,) = [one for one in stage.manifest.verdict.findings if one.code == "reward_model_reads_text"]
    assert finding.level == "info" and finding.message.startswith(sentence)
    assert (stage.dir / "model" / "model.safetensors").is_file()
    if not name.startswith("ppo"):
        return
    assert (
        "critic fresh on the policy's base: the reward model reads other tokens, or hidden states of another depth"
        in printed
    )
    direct = plain(campaign)
    rows = [json.loads(line) for line in (stage.dir / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        prompt = [Message.model_validate(message) for message in row["prompt"]]
        either = [direct.score(prompt, row["completion"], finished) for finished in (True, False)]
        assert min(abs(value - row["rewards"]["reward_model"]) for value in either) < 1e-4


def test_the_judge_of_a_comparison_and_the_live_page_score_the_text(
    made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = made()
    rlhf.align.preferences.dpo.run(campaign.stages["align"])
    capsys.readouterr()
    directory = rlhf.compare.run.run(campaign.stages["compare"])
    assert capsys.readouterr().out.count("the reward model's tokenizer and chat template differ from") == 1
    direct = plain(campaign)
    rows = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    judged = [(row["prompt"], answer) for row in rows for side in ("sft", "aligned") for answer in row[side]]
    for turns, answer in judged[:16]:
        prompt = [Message.model_validate(turn) for turn in turns]
        by_hand = direct.score(prompt, answer["text"], answer["finished"])
        assert answer["scores"]["reward_model"] == pytest.approx(by_hand, abs=1e-5)

    told: list[str] = []
    engine = Engine(campaign.run_dir, told.append)
    (prompt, one), (_, two) = candidates(campaign)[:2]
    assert engine.scores(prompt, [one, two]) == pytest.approx(
        [direct.score(prompt, answer.text, answer.finished) for answer in (one, two)], abs=1e-5
    )
    assert told == ["the reward model, which reads the answers' text in tokens of its own"]


def test_a_reward_model_of_ones_own_labels_the_text(
    made: Any, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = made()
    own = another_base.reward_model(tmp_path / "own", bases("llama"))
    label = campaign.stages["label"].model_copy(update={"source": "reward_model", "reward_model": str(own)})
    capsys.readouterr()
    ui.label.run.run(label)
    assert capsys.readouterr().out.count("the reward model's tokenizer and chat template differ from the policy's") == 1
    direct = Plain(own)
    rows = read_rows(runs.stage_dir(campaign.run_dir, "label") / "preferences.jsonl", Preference)
    assert len(rows) > 12 and {row.source for row in rows} == {"reward_model"}
    for row in rows[:12]:
        better = direct.score(row.prompt, row.chosen[0].content, row.chosen_finished)
        assert better > direct.score(row.prompt, row.rejected[0].content, row.rejected_finished)


def test_a_prompt_that_its_template_refuses_stops_the_training_before_it_begins(made: Any) -> None:
    campaign = made("ppo")
    folder = runs.stage_dir(campaign.run_dir, "reward") / "model"
    refuses = "{% if 'red' in messages[0]['content'] %}{{ raise_exception('no reds') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refuses + another_base.TEMPLATE)
    with pytest.raises(DataError, match=r"the reward model cannot read it: .*no reds"):
        load_object(campaign.stages["align"].run)(campaign.stages["align"])


# ---- Roles on two bases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "ppo, every weight"])
def test_policy_and_critic_stay_on_the_policys_base_and_the_reward_model_is_frozen_and_forecast(
    made: Any, name: str
) -> None:
    campaign = made(name)
    config = campaign.stages["align"]
    assert isinstance(config, PPOConfig)
    refuse_unfit(config)
    sft, paying = (runs.open_stage(campaign.run_dir, stage) for stage in ("sft", "reward"))
    policy = loading.load_policy(sft.dir / "model", config.model)
    roles = cast_roles(config, policy, sft, paying, on_one_base=False)
    assert roles.reward is not None and not roles.critic_from_reward
    tokens = torch.tensor([[5, 6, 7]])
    with roles.playing("critic") as critic:
        assert not critic(input_ids=tokens, scores=True).any(), "a fresh critic says 0"
    with roles.playing("reward") as model:
        assert model is roles.reward.model and model.config.model_type == "gpt_neox"
    assert isinstance(roles, SharedBase) is (name == "ppo")
    trained = {id(weight) for weight in roles.trained_weights.values()}
    other = list(roles.reward.model.parameters())
    assert not trained & {id(weight) for weight in other} and not any(weight.requires_grad for weight in other)
    by = scores(roles, UNITS)
    assert by is not None
    prompt, answer = candidates(campaign)[0]
    assert by([prompt], [answer]).rewards == pytest.approx(
        [plain(campaign).score(prompt, answer.text, answer.finished)], abs=1e-5
    )
    before = roles.fingerprint()
    with torch.no_grad():
        other[0].view(-1)[3] += 1e-3
    assert roles.fingerprint() != before, "a changed weight of the reward model is seen"

    alone = memory.predict(
        config, cast_roles(config, loading.load_policy(sft.dir / "model", config.model), sft, None, True)
    )
    both = memory.predict(config, roles)
    size = sum(weight.numel() * weight.itemsize for weight in other)
    assert both.weights - alone.weights == pytest.approx(size, rel=0.01)
    assert both.sampling >= alone.sampling and both.updating == alone.updating
